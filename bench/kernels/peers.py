#!/usr/bin/env python3
"""Peers of libvar's attention that exist in Python only, timed beside it in one process.

    python bench/kernels/peers.py --device cpu --ops build/release/lib/libvar_ops.so --out bench/results/NAME-peers.json

flex_attention: one FlexAttention call per class of keys, merged by their logsumexp, the whole compiled.
per_head_loop:  redistribution as the method's first implementation describes it: probabilities in the model's dtype,
                copied, sinks looked up on the host, one head after another in Python.

Writes the form of Google Benchmark's JSON under the case names of bench_kernels, so that bench/report.py reads both.
Outputs are compared with float64 before anything is timed; a peer that can't run or is wrong is left out with a note.
"""

import argparse
import copy
import dataclasses
import datetime
import json
import math
import os
import pathlib
import random
import sys
import time

import torch
from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from rounds import aa_spread, cpu_name, describe_ratio, describe_times, interleaved  # noqa: E402

TAU, RHO, P, MIN_VISUAL_MASS = 20.0, 0.8, 0.6, 0.2
HEAD_DIM = 128
CLASSES = 4  # visual sink, visual non-sink, text sink, text non-sink: the order of libvar's TokenClass
TOLERANCE = {torch.bfloat16: 4e-2, torch.float16: 8e-3, torch.float32: 1e-4}
MARGIN = 3e-2  # rows nearer to a threshold may be selected by one arithmetic and not by another
DTYPE_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclasses.dataclass
class Shape:
    heads: int
    kv_heads: int
    rows: int
    keys: int
    sinks: int = 8
    dtype: torch.dtype = torch.bfloat16

    def name(self, device):
        return (f"attention/{device}/{DTYPE_NAMES[self.dtype]}/heads:{self.heads}/kv_heads:{self.kv_heads}"
                f"/rows:{self.rows}/keys:{self.keys}/sinks:{self.sinks}/cold")


@dataclasses.dataclass
class Inputs:
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    phi: torch.Tensor
    visual: torch.Tensor
    scale: float

    def key_class(self):
        return (~self.visual[0]).int() * 2 + (self.phi[0] < TAU).int()

    def causal(self):
        """[Q, K]: row i sees the keys up to its own position, the last rows of the sequence."""
        rows, keys = self.query.shape[2], self.key.shape[2]
        return torch.ones(rows, keys, dtype=torch.bool, device=self.query.device).tril(keys - rows)


def random_inputs(shape, device, seed):
    """The problem of bench/kernels/attention_inputs.cpp: sink keys score higher, by head from 0 up."""
    torch.manual_seed(seed)
    begin = min(35, shape.keys // 16)
    end = begin + min(max(576, shape.keys * 7 // 8), shape.keys - shape.rows - begin)
    sinks = [0] + [begin + (end - begin) * i // shape.sinks for i in range(1, shape.sinks)]
    root = math.sqrt(HEAD_DIM)
    unit = torch.randn(shape.kv_heads, 1, HEAD_DIM, device=device)
    unit /= unit.norm(dim=-1, keepdim=True)
    key = torch.randn(shape.kv_heads, shape.keys, HEAD_DIM, device=device)
    key[:, sinks] += unit * root
    largest = max(4.5 + math.log(shape.keys / 640 * 8 / shape.sinks), 2.5)
    boost = (torch.arange(shape.heads, device=device) + 0.5) * (largest / shape.heads)
    head_unit = unit.repeat_interleave(shape.heads // shape.kv_heads, 0)
    query = torch.randn(shape.heads, shape.rows, HEAD_DIM, device=device)
    query += (boost[:, None, None] - (query * head_unit).sum(-1, keepdim=True)) * head_unit
    phi = torch.rand(1, shape.keys, device=device) * 15
    phi[:, sinks] = 30.0
    visual = torch.zeros(1, shape.keys, dtype=torch.bool, device=device)
    visual[:, begin:end] = True
    value = torch.randn(shape.kv_heads, shape.keys, HEAD_DIM, device=device)
    return Inputs(*(t.to(shape.dtype)[None] for t in (query, key, value)), phi, visual, 1 / root)


def plain_probabilities(inputs, dtype):
    group = inputs.query.shape[1] // inputs.key.shape[1]
    key = inputs.key.repeat_interleave(group, 1) if group > 1 else inputs.key
    scores = (inputs.query.to(dtype) @ key.to(dtype).transpose(2, 3)) * inputs.scale
    if inputs.query.shape[2] > 1:
        scores = scores.masked_fill(~inputs.causal(), -math.inf)
    return scores


def times_values(inputs, probs):
    group = inputs.query.shape[1] // inputs.value.shape[1]
    value = inputs.value.repeat_interleave(group, 1) if group > 1 else inputs.value
    return probs @ value.to(probs.dtype)


def expected_output(inputs):
    """float64, and how far each row is from the other decision."""
    probs = plain_probabilities(inputs, torch.float64).softmax(-1)
    key_class = inputs.key_class()
    mass = [(probs * (key_class == c)).sum(-1, keepdim=True) for c in range(CLASSES)]
    image = mass[0] + mass[1]
    ratio = mass[1] / image
    selected = (image >= MIN_VISUAL_MASS) & (ratio >= RHO) & (mass[1] > 0) & (key_class == 0).any()
    gain = 1 + P * (mass[0] + mass[2]) / mass[1]
    weight = torch.where(key_class == 1, gain, torch.where((key_class == 0) | (key_class == 2), 1 - P, 1.0))
    moved = torch.where(selected, probs * weight, probs)
    margin = torch.minimum((image - MIN_VISUAL_MASS).abs(), (ratio - RHO).abs())
    return times_values(inputs, moved), margin[..., 0]


def largest_row_error(out, expected, margin):
    if not torch.isfinite(out).all():
        return math.inf
    error = (out.double() - expected).norm(dim=-1) / expected.norm(dim=-1)
    return error[margin >= MARGIN].max().item()


def per_head_loop(inputs):
    probs = plain_probabilities(inputs, inputs.query.dtype).softmax(-1, dtype=torch.float32).to(inputs.query.dtype)
    sinks = torch.nonzero(inputs.phi[0] > TAU).flatten().tolist()  # a wait for the device, in every layer
    image = torch.nonzero(inputs.visual[0]).flatten()
    begin, end = int(image[0]), int(image[-1]) + 1
    image_sinks = [j for j in sinks if begin <= j < end]
    if not image_sinks:
        return times_values(inputs, probs)
    moved = copy.deepcopy(probs)
    others = [j for j in range(begin, end) if j not in set(image_sinks)]
    for head in range(probs.shape[1]):
        row = probs[0, head]
        on_image = row[:, begin:end].sum(-1)
        on_sinks = row[:, image_sinks].sum(-1)
        rows = torch.nonzero((on_image >= MIN_VISUAL_MASS) & (on_sinks / on_image <= 1 - RHO)).flatten()
        if rows.numel() == 0:
            continue
        chosen = row[rows]
        budget = P * chosen[:, sinks].sum(-1, keepdim=True)
        share = chosen[:, others] / chosen[:, others].sum(-1, keepdim=True)
        chosen[:, sinks] *= 1 - P
        chosen[:, others] += budget * share
        moved[0, head, rows] = chosen
    return times_values(inputs, moved)


def flex_function(compiled):
    """One call per class; a class without keys has logsumexp -inf and weight 0."""

    def merged(query, key, value, masks, scale):
        outs, masses = [], []
        for mask in masks:
            out, aux = flex_attention(query, key, value, block_mask=mask, scale=scale,
                                      enable_gqa=query.shape[1] != key.shape[1], return_aux=AuxRequest(lse=True))
            outs.append(torch.nan_to_num(out.float()))
            masses.append(aux.lse.unsqueeze(-1))
        total = torch.logsumexp(torch.cat(masses, -1), -1, keepdim=True)
        vs, vn, ts, tn = (torch.exp(lse - total) for lse in masses)
        image = vs + vn
        selected = (image >= MIN_VISUAL_MASS) & (vn >= RHO * image) & (vn > 0)
        kept = torch.where(selected, 1 - P, 1.0)
        gained = torch.where(selected, P * (vs + ts), 0.0)
        result = kept * (vs * outs[0] + ts * outs[2]) + (vn + gained) * outs[1] + tn * outs[3]
        return result.to(query.dtype)

    return torch.compile(merged, dynamic=False) if compiled else merged


def flex_masks(inputs):
    key_class = inputs.key_class()
    rows, keys = inputs.query.shape[2], inputs.key.shape[2]
    past = keys - rows

    def mask_of(wanted):
        def visible(b, h, q, k):
            return (key_class[k] == wanted) & (k <= q + past)

        return create_block_mask(visible, None, None, rows, keys, device=inputs.query.device)

    return [mask_of(c) for c in range(CLASSES)]


def variants_of(sets, compiled):
    def libvar(inputs):
        return torch.ops.libvar.attention(inputs.query, inputs.key, inputs.value, inputs.phi, inputs.visual,
                                          scale=inputs.scale, tau=TAU, rho=RHO, p=P, min_visual_mass=MIN_VISUAL_MASS)

    flex = flex_function(compiled)
    masks = [flex_masks(inputs) for inputs in sets[:1]] * len(sets)  # the same classes in every set

    return {
        "libvar": lambda i: libvar(sets[i]),
        "libvar_again": lambda i: libvar(sets[i]),
        "flex_attention": lambda i: flex(sets[i].query, sets[i].key, sets[i].value, masks[i], sets[i].scale),
        "per_head_loop": lambda i: per_head_loop(sets[i]),
    }


class CpuTimer:
    """Processor time of this thread, one input set after another."""

    def __init__(self, variants, num_sets):
        self.variants, self.num_sets, self.next_set = variants, num_sets, 0

    def call_us(self, name):
        self.next_set += 1
        begin = time.thread_time_ns()
        self.variants[name](self.next_set % self.num_sets)
        return (time.thread_time_ns() - begin) / 1e3


class CudaTimer:
    """Graph replay between events where the variant can be captured, else direct calls."""

    def __init__(self, variants, num_sets):
        self.variants, self.num_sets, self.graphs = variants, num_sets, {}
        for name in ("libvar", "libvar_again", "flex_attention"):
            if name not in variants:
                continue
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for i in range(num_sets):
                    variants[name](i)
            self.graphs[name] = graph

    def call_us(self, name):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        if name in self.graphs:
            self.graphs[name].replay()
        else:
            for i in range(self.num_sets):
                self.variants[name](i)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e3 / self.num_sets


def run_case(shape, size, device, rounds):
    # Several times the cache, as bench_kernels has it; at most as many as keep the set-up short.
    bytes_each = 2 * size.kv_heads * size.keys * HEAD_DIM * torch.empty(0, dtype=size.dtype).element_size()
    num_sets = 2 if size is not shape else min(32, max(8 if device == "cuda" else 2, int(256e6 // bytes_each)))
    sets = [random_inputs(size, device, seed) for seed in range(1, 1 + num_sets)]
    expected, margin = expected_output(sets[0])
    result = {"name": shape.name(device), "run_type": "iteration", "iterations": rounds}
    variants, notes = {}, []
    for name, run in variants_of(sets, compiled=size is shape).items():
        try:
            error = largest_row_error(run(0), expected, margin)
        except Exception as problem:  # a peer that this version or device does not offer
            if name.startswith("libvar"):
                raise
            lines = [line for line in str(problem).splitlines() if line.strip()]
            notes.append(f"{name} left out: {type(problem).__name__}: {lines[0] if lines else ''}")
            continue
        result[f"error_share/{name}"] = error / TOLERANCE[size.dtype]
        if not error <= TOLERANCE[size.dtype]:
            if name.startswith("libvar"):
                raise AssertionError(f"{shape.name(device)}: libvar is off by {error}")
            notes.append(f"{name} left out: off by {error:.3g}")
            continue
        variants[name] = run
    timer = (CudaTimer if device == "cuda" else CpuTimer)(variants, num_sets)
    samples = interleaved(variants, rounds, 2, timer.call_us)
    for name, times in samples.items():
        describe_times(result, name, times)
        if not name.startswith("libvar"):
            describe_ratio(result, name, "libvar", samples)
    result["aa_spread"] = aa_spread(samples, "libvar", "libvar_again")
    result["label"] = "; ".join(notes)
    medians = [f"{name} {result[f'us/{name}/median']:.1f} us" for name in samples]
    print(result["name"], *medians, *notes, sep="\n    ", flush=True)
    return result


def grid(device):
    if device == "cuda":
        models = [(32, 32, 640), (28, 4, 16384)]
        return [Shape(h, kv, rows, keys) for h, kv, keys in models for rows in (1, 64)]
    return [Shape(32, 32, 1, 640), Shape(28, 4, 1, 4096), Shape(32, 32, 64, 640)]


def tiny(shape):
    kv_heads = min(shape.kv_heads, 2)
    return dataclasses.replace(shape, kv_heads=kv_heads, heads=kv_heads * (shape.heads // shape.kv_heads),
                               rows=min(shape.rows, 20), keys=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--grid", choices=("cpu", "cuda"), help="which list of cases; default: the device's")
    parser.add_argument("--ops", required=True, help="libvar_ops.so")
    parser.add_argument("--out", help="JSON file")
    parser.add_argument("--rounds", type=int, default=51)
    parser.add_argument("--tiny", action="store_true", help="small sizes, 2 rounds: does everything run")
    parser.add_argument("--budget", type=float, default=180.0, help="seconds after which no further case starts")
    parser.add_argument("--commit", default="unknown")
    args = parser.parse_args()
    torch.ops.load_library(args.ops)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    random.seed(1)
    context = {"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
               "cpu": cpu_name(), "cpu_cores": str(os.cpu_count()), "device": args.device, "threads": "1",
               "sizes": "tiny" if args.tiny else "full", "torch": torch.__version__, "commit": args.commit}
    if args.device == "cuda":
        context["gpu"] = torch.cuda.get_device_name(0)
    begin, results = time.monotonic(), []
    for shape in grid(args.grid or args.device):
        if time.monotonic() - begin > args.budget:
            print(f"peers: out of time before {shape.name(args.device)}")
            break
        results.append(run_case(shape, tiny(shape) if args.tiny else shape, args.device,
                                2 if args.tiny else args.rounds))
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump({"context": context, "benchmarks": results}, file, indent=1)
            file.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
