#!/usr/bin/env python3
"""Time to the first token and decode speed of libvar beside transformers, in one process, on the same weights.

    python bench/model/bench_model.py --module build/release/lib/bench_model.so --out bench/results/NAME-model.json

Every shape gets random weights; libvar uses the tensors of the transformers model where they lie (on CUDA query, key and
value, gate and up are copied into one buffer each, as Model::load does). BOS and eight visual tokens carry a massive
value in a sink dimension, so VAR acts; it may change every layer. Outputs are compared before anything is timed: libvar
without VAR with transformers' SDPA, with VAR with the method written on eager attention. The vision tower and projector of
the shape, on one picture, are a case of their own. Then rounds: every variant once, in random order; a decode round is
some steps from the same length of the cache. A CPU's rounds also read all weights and the cache once: the bound of a step;
on CUDA a copy moves as many bytes, and the bound of a prefill is the time of its operations at the rate of an 8192^3 product.
With --llama-cpp a CPU's rounds have llama.cpp too, on a copy of the weights.
With --sequences nothing but decode steps of so many sequences at once is timed, with int8 weights beside the others.
"""

import argparse
import contextlib
import ctypes
import dataclasses
import datetime
import gc
import json
import os
import pathlib
import random
import re
import sys
import time

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from rounds import aa_spread, cpu_name, describe_ratio, describe_times, interleaved  # noqa: E402

try:
    import transformers

    import llama_cpp_peer
    from sequences import int8_tensors, run_sequences
    from transformers_peers import TransformersDecoder, make_model
    from vision_peers import make_vision
except ImportError as problem:
    sys.exit(f"SKIPPED: {problem}; python -m pip install -r third_party/requirements-bench.txt")

# Largest difference of a logit, of the largest, that the arithmetics may have: rounding of the dtype through the layers.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SINKS, TEXT_BEFORE, TEXT_BEHIND = 8, 35, 29


@dataclasses.dataclass(frozen=True)
class Shape:
    """A decoder. Qwen2-VL's positions have three coordinates; here it counts tokens, which costs the same."""
    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    qkv_bias: bool = False
    rope_theta: float = 10000.0
    norm_epsilon: float = 1e-5

    @property
    def head_dim(self):
        return self.hidden // self.heads

    @property
    def layer_weights(self):
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def head_weights(self):
        return self.vocabulary * self.hidden

    def weight_bytes(self, layers, dtype):
        """What a step reads: layers and head."""
        return torch.empty(0, dtype=dtype).element_size() * (layers * self.layer_weights + self.head_weights)

    def prefill_flops(self, layers, rows):
        """Of the products, with causal attention and one row of the head."""
        return 2 * (rows * layers * self.layer_weights + self.head_weights) + 4 * layers * self.heads * self.head_dim * rows * (rows + 1) // 2

    def cache_bytes(self, layers, keys, dtype):
        return layers * keys * (2 * self.kv_heads * self.head_dim * torch.empty(0, dtype=dtype).element_size() + 4)


SHAPES = [
    Shape("llava-1.5-7b", 32, 4096, 11008, 32, 32, 32064),
    Shape("qwen2-vl-7b", 28, 3584, 18944, 28, 4, 152064, True, 1e6, 1e-6),
    Shape("internvl2-8b", 32, 4096, 14336, 32, 8, 92553, False, 1e6),
]


class Prompt:
    """Text, one image, text; BOS and some visual tokens are sinks."""

    def __init__(self, shape, length, sink_dims, dtype, device):
        begin, end = min(TEXT_BEFORE, length // 8), length - min(TEXT_BEHIND, length // 8)
        self.begin, self.visual = begin, end - begin
        self.ids = [1] + [2 + i % 90 for i in range(1, begin)] + [0] * self.visual + [3 + i % 90 for i in range(length - end)]
        generator = torch.Generator(device="cpu").manual_seed(length)
        features = torch.randn(self.visual, shape.hidden, generator=generator)
        sinks = [self.visual * i // SINKS for i in range(SINKS)]
        features[sinks, sink_dims[0]] = 50.0 * shape.hidden ** 0.5
        self.features = features.to(device, dtype)
        self.visual_mask = torch.zeros(1, length, dtype=torch.bool, device=device)
        self.visual_mask[:, begin:end] = True

    def embeddings(self, model):
        out = model.get_input_embeddings()(torch.tensor([self.ids], device=self.features.device))
        out[0, self.begin:self.begin + self.visual] = self.features
        return out


def libvar_config(shape, layers, positions):
    return {"hidden_size": shape.hidden, "intermediate_size": shape.intermediate, "num_layers": layers,
            "num_heads": shape.heads, "num_kv_heads": shape.kv_heads, "head_dim": shape.head_dim,
            "vocab_size": shape.vocabulary, "max_positions": positions, "rms_norm_eps": shape.norm_epsilon,
            "rope_theta": shape.rope_theta, "qkv_bias": float(shape.qkv_bias)}


def relative_error(actual, expected):
    if not torch.isfinite(actual).all():
        return float("inf")
    return ((actual.float() - expected.float()).abs().max() / expected.float().abs().max()).item()


class Timer:
    """Microseconds of a call: processor time of the thread where there is one, else time until the device is done."""

    def __init__(self, device, threads):
        self.device, self.alone = device, device == "cpu" and threads == 1

    def now(self):
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.thread_time_ns() if self.alone else time.perf_counter_ns()

    def us(self, call):
        begin = self.now()
        call()
        return (self.now() - begin) / 1e3


class Bench:
    """One shape: the models on the same weights."""

    def __init__(self, shape, args, llama_cpp):
        self.shape, self.args = shape, args
        self.dtype, self.device = DTYPES[args.dtype], args.device
        self.layers = args.layers or shape.layers
        self.positions = max(args.keys + args.prefill) + args.steps + 8
        self.model = make_model(shape, self.layers, self.dtype, self.device, self.positions)
        self.sink_dims = [shape.hidden // 3]
        embedding = self.model.get_input_embeddings().weight
        embedding[1, self.sink_dims[0]] = 50.0 * shape.hidden ** 0.5
        tensors = {name: weight.data for name, weight in self.model.named_parameters()}
        # The last norm weakens the planted dimension, as training does: the head would see little else.
        tensors["model.norm.weight"][self.sink_dims[0]] = 0.0
        self.libvar = torch.classes.libvar_bench.Decoder(libvar_config(shape, self.layers, self.positions), tensors,
                                                         self.sink_dims)
        self.decoders = {"libvar": self.libvar}
        if args.sequences:
            self.decoders["libvar_int8"] = torch.classes.libvar_bench.Decoder(
                libvar_config(shape, self.layers, self.positions), int8_tensors(tensors), self.sink_dims)
        self.weights = [weight for name, weight in tensors.items() if "embed_tokens" not in name]
        self.timer = Timer(self.device, args.threads)
        self.llama_cpp = llama_cpp and llama_cpp_peer.LlamaCppModel(llama_cpp, shape, self.model, self.positions, args.threads)

    def close(self):
        if self.llama_cpp:
            self.llama_cpp.close()

    def prefill_libvar(self, prompt, with_var):
        return self.libvar.prefill(prompt.ids, prompt.begin, prompt.features, with_var, self.args.steps + 8)

    @contextlib.contextmanager
    def peers(self, prompt):
        names = {"transformers_sdpa": "sdpa", "transformers_eager": "eager", "transformers_eager_var": "eager_var"}
        peers = {name: TransformersDecoder(self.model, attention, self.sink_dims, prompt) for name, attention in names.items()}
        if self.llama_cpp:
            peers["llama_cpp"] = llama_cpp_peer.LlamaCppDecoder(self.llama_cpp, prompt.embeddings(self.model))
        yield peers
        for peer in peers.values():
            peer.close()

    def name_of(self, kind, keys):
        shape = self.shape
        return (f"{kind}/{self.device}/{self.args.dtype}/{shape.name}/heads:{shape.heads}/kv_heads:{shape.kv_heads}"
                f"/layers:{self.layers}/keys:{keys}")

    def check(self, result, name, actual, expected, more_tolerance=0.0):
        tolerance = TOLERANCE[self.dtype] + more_tolerance
        error = relative_error(actual, expected)
        result[f"error_share/{name}"] = error / tolerance
        if not error <= tolerance:
            raise AssertionError(f"{result['name']}: {name} is off by {error:.3g} of the largest value")

    def run_prefill(self, keys):
        prompt = Prompt(self.shape, keys, self.sink_dims, self.dtype, self.device)
        result = {"name": self.name_of("prefill", keys), "run_type": "iteration", "iterations": self.args.prefill_rounds}
        with self.peers(prompt) as peers:
            plain = peers["transformers_sdpa"].prefill()
            self.check(result, "libvar_off", self.prefill_libvar(prompt, False), plain)
            self.check(result, "libvar", self.prefill_libvar(prompt, True), peers["transformers_eager_var"].prefill())
            if self.llama_cpp:
                self.check(result, "llama_cpp", peers["llama_cpp"].prefill(), plain)
            calls = {"libvar": lambda: self.prefill_libvar(prompt, True),
                     "libvar_again": lambda: self.prefill_libvar(prompt, True),
                     "libvar_off": lambda: self.prefill_libvar(prompt, False)}
            calls |= {name: peer.prefill for name, peer in peers.items()}
            scale = 1.0
            if self.device == "cuda":
                calls["bound"], flops = matrix_product(self.dtype)
                scale = self.shape.prefill_flops(self.layers, keys) / flops
            if self.args.profile:
                profile(calls["libvar"], 1)
            describe_peaks(result, calls, self.device)
            samples = interleaved(calls, self.args.prefill_rounds, 1,
                                  lambda name: self.timer.us(calls[name]) * (scale if name == "bound" else 1.0))
        return self.finish(result, samples, {"transformers_sdpa": {"at_least": 1.0}})

    def run_vision(self):
        vision = make_vision(self.shape.name, self.shape.hidden, self.dtype, self.device, self.args.quick)
        tower = torch.classes.libvar_bench.Vision({key: float(value) for key, value in vision.numbers.items()},
                                                  self.shape.hidden, vision.tensors)
        calls = {"libvar": lambda: tower.encode(vision.pixels, *vision.grid), "transformers_sdpa": vision.features}
        calls["libvar_again"] = calls["libvar"]
        features = calls["libvar"]()
        shape = self.shape
        result = {"name": f"vision/{self.device}/{self.args.dtype}/{shape.name}/heads:{shape.heads}/kv_heads:{shape.kv_heads}"
                          f"/layers:{vision.numbers['num_layers']}/tokens:{features.shape[0]}",
                  "run_type": "iteration", "iterations": self.args.prefill_rounds}
        self.check(result, "libvar", features, vision.features())
        samples = interleaved(calls, self.args.prefill_rounds, 1, lambda name: self.timer.us(calls[name]))
        return self.finish(result, samples, {})

    def check_decode(self, result, prompt, peers, token):
        """The second token after the prompt, without VAR and with."""
        for with_var, name, peer in ((False, "libvar_off", peers["transformers_sdpa"]),
                                     (True, "libvar", peers["transformers_eager_var"])):
            peer.prefill()
            self.prefill_libvar(prompt, with_var)
            self.libvar.decode(token, len(prompt.ids), 2, with_var, True)
            expected = peer.decode(token, 2)
            self.check(result, name, self.libvar.logits()[0], expected)
            if self.llama_cpp and not with_var:
                peers["llama_cpp"].prefill()
                self.check(result, "llama_cpp", peers["llama_cpp"].decode(token, 2), expected)

    def run_decode(self, keys):
        args = self.args
        prompt = Prompt(self.shape, keys, self.sink_dims, self.dtype, self.device)
        with self.peers(prompt) as peers:
            return self.time_decode(keys, args, prompt, peers)

    def time_decode(self, keys, args, prompt, peers):
        result = {"name": self.name_of("decode", keys), "run_type": "iteration", "iterations": args.rounds}
        token = 7
        if keys == min(args.keys):
            self.check_decode(result, prompt, peers, token)
        first = peers["transformers_sdpa"]
        first.prefill(with_phi=True)
        for peer in peers.values():
            if peer is not first:
                peer.take_prefill_of(first)
        self.prefill_libvar(prompt, True)
        self.libvar.decode(token, keys, 2, True, True)
        result["selected_share"] = self.libvar.selected() / (2 * self.layers * self.shape.heads)
        if result["selected_share"] == 0:
            raise AssertionError(f"{result['name']}: VAR selects no head, so its cost would not be measured")

        def libvar(with_var, graph=True):
            return lambda: self.libvar.decode(token, keys, args.steps, with_var, graph)

        calls = {"libvar": libvar(True), "libvar_again": libvar(True), "libvar_off": libvar(False)}
        if self.device == "cuda":
            calls["libvar_no_graph"] = libvar(True, False)
        for name, peer in peers.items():
            calls[name] = lambda peer=peer: peer.decode(token, args.steps)
        if args.profile:
            profile(calls["libvar"], args.steps)
        samples = self.time_steps(result, calls, self.shape.cache_bytes(self.layers, keys + args.steps // 2, self.dtype))
        at_least = {640: 2.5, 4096: 4.0} if self.device == "cpu" else {}
        return self.finish(result, samples, {
            "transformers_sdpa": {"at_least": at_least.get(keys, 1.5)},
            "transformers_eager_var": {"at_least": 3.0} if self.device == "cuda" else {},
            "llama_cpp": {"at_least": 1.0} if keys == 640 else {},
            "bound": {"at_least": 0.8} if self.device == "cuda" or keys == 640 else {}})

    def time_steps(self, result, calls, cache_bytes):
        """Microseconds of a step in rounds of `calls`, each of which is args.steps long, and of the bound."""
        cache = torch.empty(cache_bytes, dtype=torch.uint8, device=self.device).fill_(1)
        result["bytes"] = self.shape.weight_bytes(self.layers, self.dtype) + cache.nbytes
        calls["bound"], bytes_moved = self.bound(cache, result["bytes"])

        def time_us(name):
            return self.timer.us(calls[name]) * (result["bytes"] / bytes_moved if name == "bound" else 1 / self.args.steps)

        samples = interleaved(calls, self.args.rounds, 2, time_us, 0 if self.args.quick else 3 * self.args.rounds)
        result["iterations"] = len(samples["libvar"])
        return samples

    def run_sequences(self, keys):
        prompt = Prompt(self.shape, keys, self.sink_dims, self.dtype, self.device)
        return [run_sequences(self, prompt, count) for count in self.args.sequences]

    def bound(self, cache, needed):
        """Reads what a step must read, on CUDA copies about as much; a call and the bytes that it moves."""
        if self.device == "cpu":
            return lambda: torch.ops.libvar_bench.read([*self.weights, cache]), needed
        size = min(needed, 1 << 32) // 2
        source, target = (torch.empty(size, dtype=torch.uint8, device="cuda").random_() for _ in range(2))
        copies = max(1, round(needed / (2 * size)))

        def copy():
            for _ in range(copies):
                target.copy_(source)

        return copy, copies * 2 * size

    def finish(self, result, samples, bars):
        for name, times in samples.items():
            describe_times(result, name, times)
        if "libvar_off" in samples:
            describe_ratio(result, "libvar", "libvar_off", samples)
            result["at_most/libvar/libvar_off"] = 1.03 if self.device == "cpu" else 1.02
        for name in samples:
            if name in ("libvar", "libvar_again", "libvar_off"):
                continue
            describe_ratio(result, name, "libvar", samples)
            for kind, value in bars.get(name, {}).items():
                result[f"{kind}/{name}/libvar"] = value
        result["aa_spread"] = aa_spread(samples, "libvar", "libvar_again")
        print(result["name"], *(f"{name} {result[f'us/{name}/median'] / 1e3:.2f} ms" for name in samples),
              *(f"{key[6:]} {value:.3f} [{result['ratio_low/' + key[6:]]:.3f}, {result['ratio_high/' + key[6:]]:.3f}]"
                for key, value in result.items() if key.startswith("ratio/")),
              f"A/A spread {100 * result['aa_spread']:.1f} %", sep="\n    ", flush=True)
        return result


def matrix_product(dtype, size=8192):
    """A call, and its operations."""
    a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    return lambda: torch.matmul(a, b), 2 * size ** 3


def describe_peaks(result, calls, device):
    """Most memory that each call takes beside what is held before it; llama.cpp takes its own when it is made."""
    for name, call in calls.items():
        if name not in ("bound", "llama_cpp") and not name.endswith("_again"):
            result[f"peak_bytes/{name}"] = peak_on_cuda(call) if device == "cuda" else peak_on_cpu(call)


def peak_on_cuda(call):
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before


def peak_on_cpu(call):
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the most so far is forgotten
    before = resident_bytes("VmRSS")
    call()
    return resident_bytes("VmHWM") - before


def resident_bytes(field):
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)[1])


def profile(call, steps):
    """Prints what the device does in a call, by kernel: launches and microseconds a step."""
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        call()
        torch.cuda.synchronize()
    sums = {}
    for event in found.events():
        count, us = sums.get(event.name, (0, 0.0))
        sums[event.name] = (count + 1, us + event.device_time)
    for name, (count, us) in sorted(sums.items(), key=lambda item: -item[1][1]):
        print(f"    {us / steps:9.1f} us {count / steps:7.1f} x {name[:110]}")


def quick(shape):
    """Small, with the shape's grouping of heads; wide enough for phi, at most the root of the width, to pass 20."""
    kv_heads = max(1, 4 * shape.kv_heads // shape.heads)
    return dataclasses.replace(shape, hidden=512, intermediate=384, heads=4, kv_heads=kv_heads, vocabulary=512)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", required=True, help="bench_model.so")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--shapes", nargs="+", choices=[s.name for s in SHAPES], default=[s.name for s in SHAPES])
    parser.add_argument("--layers", type=int, help="of the decoder; default: 4 on a CPU, all on CUDA")
    parser.add_argument("--keys", type=int, nargs="+", default=[640, 4096], help="lengths of the cache")
    parser.add_argument("--prefill", type=int, nargs="*", help="lengths of the prompt; default: 640, on CUDA also 4096")
    parser.add_argument("--sequences", type=int, nargs="+", help="decoded at once; then only that is timed")
    parser.add_argument("--steps", type=int, help="of a decode round; default: 8, on CUDA 32")
    parser.add_argument("--rounds", type=int, default=9, help="of decode; up to three times as many on a noisy machine")
    parser.add_argument("--prefill-rounds", type=int, help="default: 3, on CUDA 9")
    parser.add_argument("--profile", action="store_true", help="on CUDA: print the kernels of a prompt and of a step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--llama-cpp", metavar="DIR", help="sources of llama.cpp: built, and a peer on the CPU")
    parser.add_argument("--quick", action="store_true", help="small sizes, 2 rounds: does everything run")
    parser.add_argument("--out", help="JSON file")
    parser.add_argument("--commit", default="unknown")
    args = parser.parse_args()
    defaults = {"layers": 4, "prefill": [640], "steps": 8, "prefill_rounds": 3}
    if args.device == "cuda":
        defaults = {"prefill": [640, 4096], "steps": 32, "prefill_rounds": 9}
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.profile = args.profile and args.device == "cuda"
    if args.llama_cpp and (args.device == "cuda" or args.sequences):
        print("bench_model: llama.cpp is a peer of one sequence on the CPU: left out", file=sys.stderr)
        args.llama_cpp = None
    if args.quick:
        args.layers, args.keys, args.prefill, args.rounds, args.prefill_rounds = 3, [96, 300], [96], 2, 2
    return args


def main():
    args = parse_arguments()
    torch.classes.load_library(args.module)
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    random.seed(1)
    context = {"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
               "cpu": cpu_name(), "cpu_cores": str(os.cpu_count()), "device": args.device,
               "threads": str(args.threads), "sizes": "tiny" if args.quick else "full", "torch": torch.__version__,
               "transformers": transformers.__version__, "commit": args.commit,
               "load_avg": list(os.getloadavg())}
    if args.device == "cuda":
        context["gpu"] = torch.cuda.get_device_name(0)
    llama_cpp = args.llama_cpp and llama_cpp_peer.Library(args.llama_cpp)
    if llama_cpp:
        context["llama_cpp"] = llama_cpp.features()
    results = []
    for shape in SHAPES:
        if shape.name not in args.shapes:
            continue
        bench = Bench(quick(shape) if args.quick else shape, args, llama_cpp)
        if args.sequences:
            results += [case for keys in args.keys for case in bench.run_sequences(keys)]
        else:
            results.append(bench.run_vision())
            results += [bench.run_prefill(keys) for keys in args.prefill]
            results += [bench.run_decode(keys) for keys in args.keys]
        bench.close()
        del bench
        gc.collect()  # a model's modules refer to one another
        if args.out:  # after each shape: a run that is cut short leaves what it has
            pathlib.Path(args.out).write_text(json.dumps({"context": context, "benchmarks": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
