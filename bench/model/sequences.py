"""Decode steps of several sequences at once, with the weights as they are and in int8: cases of bench_model.py."""

import re

import torch

from transformers_peers import TransformersDecoder

# Largest difference of a logit, of the largest, that int8 weights may make beside that of the arithmetics.
INT8_TOLERANCE = 1e-2


def int8_tensors(tensors):
    """Linear maps of the layers in int8 with a scale for each row, as `var convert --quantize int8` has them."""
    result = {}
    for name, weight in tensors.items():
        if not re.search(r"layers\.\d+\..*_proj\.weight$", name):
            result[name] = weight
            continue
        scales = weight.float().abs().amax(1) / 127
        result[name] = (weight.float() / scales.unsqueeze(1)).round_().to(torch.int8)
        result[name + "_scale"] = scales
    return result


def check_rows(bench, result, name, expected):
    """Every sequence's logits after its last step."""
    for logits in bench.decoders[name].logits():
        bench.check(result, name, logits, expected, INT8_TOLERANCE if name == "libvar_int8" else 0.0)


def run_sequences(bench, prompt, count):
    """A case: steps of `count` sequences that all begin with the prompt, which was run."""
    args, keys, token = bench.args, len(prompt.ids), 7
    result = {"name": bench.name_of("decode", keys) + f"/sequences:{count}", "run_type": "iteration", "iterations": args.rounds}
    peer = TransformersDecoder(bench.model, "sdpa", bench.sink_dims, prompt)
    peer.prefill()
    alone = {}
    for with_var in (False, True):
        bench.prefill_libvar(prompt, with_var)
        bench.libvar.decode(token, keys, 2, with_var, True)
        alone[with_var] = bench.libvar.logits()[0]
    for decoder in bench.decoders.values():
        decoder.copy_prefill_of(bench.libvar, count, args.steps + 8)
    peer.repeat(count)

    def libvar(name, with_var=True):
        return lambda: bench.decoders[name].decode(token, keys, args.steps, with_var, True)

    for name, decoder in bench.decoders.items():
        decoder.decode(token, keys, 2, True, True)
        check_rows(bench, result, name, alone[True])
    bench.check(result, "transformers_sdpa", peer.decode(token, 2), alone[False])
    calls = {"libvar": libvar("libvar"), "libvar_again": libvar("libvar"), "libvar_off": libvar("libvar", False),
             "libvar_int8": libvar("libvar_int8"), "transformers_sdpa": lambda: peer.decode(token, args.steps)}
    samples = bench.time_steps(result, calls, count * bench.shape.cache_bytes(bench.layers, keys + args.steps // 2, bench.dtype))
    peer.close()
    return bench.finish(result, samples, {})
