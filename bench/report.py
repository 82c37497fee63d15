#!/usr/bin/env python3
"""Writes docs/benchmarks.md and docs/images/bench_*.svg from the JSON files of bench/results.

    python3 bench/report.py            writes them
    python3 bench/report.py --check    exits with 1 where they are not what the files say
"""

import argparse
import dataclasses
import json
import pathlib
import re
import sys

import charts

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOO_NOISY = 0.1  # as in bench/kernels/harness.cpp: above it nothing is decided

# What a variant is, for the reader, and its colour: libvar's own, with redistribution, without.
VARIANTS = {
    "libvar": ("libvar, with redistribution", "libvar"),
    "libvar_plain": ("same kernel, no class logic", "own"),
    "libvar_kernel": ("the op past the dispatcher", "own"),
    "libvar_one_class": ("the op, nothing to redistribute", "own"),
    "sdpa": ("PyTorch SDPA", "plain"),
    "sdpa_packed": ("PyTorch SDPA, heads packed as rows", "plain"),
    "sdpa_flash": ("SDPA, flash", "plain"),
    "sdpa_cudnn": ("SDPA, cuDNN", "plain"),
    "sdpa_efficient": ("SDPA, memory-efficient", "plain"),
    "sdpa_flash_packed": ("SDPA, flash, packed", "plain"),
    "sdpa_cudnn_packed": ("SDPA, cuDNN, packed", "plain"),
    "sdpa_efficient_packed": ("SDPA, memory-efficient, packed", "plain"),
    "eager": ("PyTorch eager", "plain"),
    "eager_packed": ("PyTorch eager, heads packed as rows", "plain"),
    "eager_redistributed": ("PyTorch eager, with redistribution", "moves"),
    "subtract": ("four SDPA calls merged", "moves"),
    "flex_attention": ("FlexAttention, one call per class", "moves"),
    "per_head_loop": ("a Python loop over heads", "moves"),
}
REDISTRIBUTE = {"libvar": ("libvar", "libvar"), "eager": ("PyTorch operators, float32 sums", "moves"),
                "eager_low_precision": ("PyTorch operators, sums in bf16", "moves"),
                "copy": ("a copy", "plain")}
NORM = {"libvar": ("libvar: norm and φ", "libvar"), "libvar_no_phi": ("libvar: norm alone", "own"),
        "eager_with_phi": ("PyTorch operators: norm and φ", "moves"),
        "eager": ("PyTorch operators: norm alone", "plain")}
LINEAR = {"libvar": ("libvar", "libvar"), "linear": ("at::linear", "plain"), "int8pack": ("PyTorch's int8 kernel", "plain"),
          "read": ("a read of the weight", "plain"), "copy": ("a copy of as many bytes, read and written", "plain")}


LAYER = {"libvar": ("libvar", "libvar"), "no_early_starts": ("each kernel after the one before", "own"),
         "without_norms": ("without its norms", "own"), "without_rotary": ("without rotary embedding", "own"),
         "without_attention": ("without attention", "own"), "products": ("its products alone", "own"),
         "copy": ("a copy of as many bytes, read and written", "plain")}


MODEL = {"libvar": ("libvar, VAR on", "libvar"), "libvar_off": ("libvar, VAR off", "own"),
         "libvar_int8": ("libvar, int8 weights, VAR on", "libvar"),
         "libvar_no_graph": ("libvar, VAR on, no CUDA graph", "libvar"),
         "transformers_sdpa": ("transformers, SDPA", "plain"), "transformers_eager": ("transformers, eager", "plain"),
         "transformers_eager_var": ("transformers, eager, VAR on", "moves"),
         "llama_cpp": ("llama.cpp, VAR off", "plain"),
         "bound": ("the bound: one pass over weights and cache", "plain")}

WHOLE = ("model", "model-2threads", "model-sequences")  # files of bench_model


LOAD = {"map": "Model::load, weights used in the mapped file, its pages fetched",
        "copy": "Model::load, weights copied into huge pages", "load": "Model::load onto the GPU",
        "read": "the file read piece by piece into one small buffer",
        "read_new": "the file read into new memory of huge pages"}


MODELS = {(32, 32): "LLaVA-1.5-7B", (32, 8): "InternVL2-8B", (28, 4): "Qwen2-VL-7B"}  # by heads and key heads


@dataclasses.dataclass
class Case:
    name: str
    values: dict
    note: str = ""
    failed: str = ""

    def __post_init__(self):
        parts = self.name.split("/")
        self.op, self.device, self.dtype = parts[:3] if len(parts) > 2 else (parts[0], "", "")
        self.sizes = {key: int(value) for key, value in (p.split(":") for p in parts[3:] if ":" in p)}
        self.hot = parts[-1] == "hot"

    def median(self, variant):
        return self.values.get(f"us/{variant}/median")

    def variants(self):
        return [key.split("/")[1] for key in self.values if re.fullmatch(r"us/.*/median", key)]

    def ratios(self):
        """(numerator, denominator, value, low, high, at_most, at_least)"""
        for key, value in self.values.items():
            if not key.startswith("ratio/"):
                continue
            pair = key.removeprefix("ratio/")
            get = lambda kind: self.values.get(f"{kind}/{pair}")
            yield (*pair.split("/"), value, get("ratio_low"), get("ratio_high"), get("at_most"), get("at_least"))


@dataclasses.dataclass
class Run:
    file: str
    context: dict
    cases: dict

    def machine(self):
        return self.context.get("gpu") if self.context["device"] == "cuda" else self.context["cpu"]


def read_run(path):
    data = json.loads(path.read_text())
    cases = {}
    for entry in data["benchmarks"]:
        name = re.sub(r"/iterations:\d+/manual_time$", "", entry["name"])
        values = {key: value for key, value in entry.items() if isinstance(value, (int, float))}
        cases[name] = Case(name, values, entry.get("label", ""), entry.get("error_message", ""))
    return Run(path.name, data["context"], cases)


def newest_runs(folder):
    """{(device, machine): {"kernels": run, "peers": run}} of the latest date."""
    runs = {}
    for path in sorted(folder.glob("*.json")):
        run = read_run(path)
        if run.context.get("sizes") == "tiny":
            raise ValueError(f"{path}: made with --tiny, no measurement")
        kind = next((k for k in ("peers", *WHOLE, "load", "ask") if path.stem.endswith("-" + k)), "kernels")
        group = runs.setdefault((run.context["device"], run.machine()), {})
        if kind not in group or group[kind].context["date"] < run.context["date"]:
            group[kind] = run
    return {key: group for key, group in runs.items() if "kernels" in group}


def verdict(value, at_most, at_least, spread):
    if spread > TOO_NOISY:
        return "not decided"
    if at_most is not None:
        return "holds" if value <= at_most + spread else "**missed**"
    return "holds" if value >= at_least * (1 - spread) else "**missed**"


def heading(case):
    sizes = case.sizes
    if case.op == "attention":
        rows = "1 row" if sizes["rows"] == 1 else f"{sizes['rows']} rows"
        heads = (sizes["heads"], sizes["kv_heads"])
        parts = [rows, f"{sizes['keys']} keys", f"{heads[0]}/{heads[1]} heads ({MODELS[heads]})"]
        parts += [f"{sizes['sinks']} sinks"] if sizes["sinks"] != 8 else []
        parts += [case.dtype] if case.dtype != "bf16" else []
        parts += ["hot"] if case.hot else []
        return ", ".join(parts)
    if case.op == "redistribute":
        return f"[1, {sizes['heads']}, {sizes['rows']}, {sizes['keys']}] {case.dtype}"
    if case.op == "vision":
        return (f"{MODELS[sizes['heads'], sizes['kv_heads']]}, {sizes['layers']} layers, {case.dtype}, one picture of "
                f"{sizes['tokens']} visual tokens")
    if case.op in ("decode", "prefill"):
        return (f"{MODELS[sizes['heads'], sizes['kv_heads']]}, {sizes['layers']} layers, {case.dtype}, "
                f"{sizes['keys']} {'keys' if case.op == 'decode' else 'tokens'}" +
                (f", {sizes['sequences']} sequences" if "sequences" in sizes else ""))
    if case.op == "layer":
        return f"{MODELS[sizes['heads'], sizes['kv_heads']]}, {case.dtype}, {sizes['keys']} keys"
    if case.op == "load":
        return f"an archive of {case.values['bytes'] / 1e9:.1f} GB, from the {case.dtype.replace('_', ' ')}"
    if case.op in ("skinny_linear", "skinny_swiglu"):
        return f"{sizes['rows']} of {sizes['in']} -> {sizes['out']} {case.dtype}"
    return f"[{sizes['rows']}, {sizes['hidden']}] {case.dtype}"


def with_peers(run, peers):
    """The kernel run's cases with the Python peers beside them: their ratio to libvar in their own process, in terms of
    libvar's time here."""
    for name, case in run.cases.items():
        other = peers.cases.get(name) if peers else None
        if other is None or case.median("libvar") is None:
            continue
        for variant in ("flex_attention", "per_head_loop"):
            ratio = other.values.get(f"ratio/{variant}/libvar")
            if ratio is not None:
                case.values[f"us/{variant}/median"] = ratio * case.median("libvar")
    return run


def ceiling(run, device, kind):
    case = run.cases.get(f"ceiling/{device}/{kind}")
    if case is None:
        return None
    median = case.median(kind.split("_")[0])
    amount = case.values.get("bytes", case.values.get("flops"))
    return amount / median / 1e3 if median else None  # GB/s or GFLOP/s


def share_of_ceiling(run, case):
    """Share of the rate that limits the case, or none: reads or copies for one row, matrix products for many."""
    median = case.median("libvar")
    if median is None or case.hot:
        return None
    if case.op == "redistribute":
        copy = case.median("copy")
        return copy / median if copy else None
    if case.op == "attention" and case.sizes["rows"] > 1:
        rate = ceiling(run, case.device, "matmul_bf16") if case.dtype == "bf16" else None
        return case.values["flops"] / median / 1e3 / rate if rate else None
    rate = ceiling(run, case.device, "read") or ceiling(run, case.device, "copy")
    return case.values["bytes"] / median / 1e3 / rate if rate else None


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows] + [""]


def bars_table(runs):
    rows = []
    for run, case in ((run, case) for run in runs for case in run.cases.values()):
        spread = case.values.get("aa_spread", 0.0)
        for a, b, value, low, high, at_most, at_least in case.ratios():
            if at_most is None and at_least is None:
                continue
            bar = f"at most {at_most:.2f}" if at_most is not None else f"at least {at_least:.2f}"
            said = verdict(value, at_most, at_least, spread)
            # What the bar asks of libvar may be more than the machine can do: the same peer beside the bound.
            best = case.median(a) / case.median("bound") if at_least and a != "bound" and case.median("bound") else None
            if said == "**missed**" and best and best < at_least:
                said += f"; the bound itself: {best:.2f}"
            rows.append([case.op, heading(case), f"`{a}` / `{b}`", f"{value:.3f} [{low:.3f}, {high:.3f}]",
                         f"{100 * spread:.1f} %", bar, said])
        # The one bar that takes two cases: bandwidth of long decode against the copy measured in the same run.
        long_decode = case.op == "attention" and case.sizes["rows"] == 1 and case.sizes["keys"] >= 16384
        if long_decode and case.device == "cuda" and case.dtype == "bf16" and not case.hot:
            share = share_of_ceiling(run, case)
            if share:
                rows.append([case.op, heading(case), "bytes per second / copy rate", f"{share:.3f}",
                             f"{100 * spread:.1f} %", "at least 0.80", verdict(share, None, 0.8, spread)])
    return table(["op", "case", "ratio of times", "median [95 %]", "A/A spread", "bar", ""], rows) if rows else []


def times_table(run, cases, names):
    variants = [v for v in names if any(case.median(v) for case in cases)]
    rows = []
    for case in cases:
        share = share_of_ceiling(run, case)
        base = case.median("libvar")
        spread = case.values.get("aa_spread", 0.0)
        row = [heading(case), f"{100 * spread:.1f} %", f"{100 * share:.0f} %" if share else ""]
        for variant in variants:
            us = case.median(variant)
            cell = "" if us is None else charts.duration(us)
            if us is not None and base and variant != "libvar":
                cell += f" ({us / base:.2f}×)"
            row.append(cell)
        rows.append(row)
    return table(["case", "A/A", "share of ceiling", *(f"`{v}`" for v in variants)], rows)


def memory_table(cases):
    rows = []
    for case in cases:
        own = case.values.get("peak_bytes/libvar")
        eager = case.values.get("peak_bytes/eager_redistributed")
        if own is not None and eager is not None:
            rows.append([heading(case), f"{own / 1e6:.2f} MB", f"{eager / 1e6:.2f} MB"])
    return ["Most memory that one call holds beside its inputs:", "",
            *table(["case", "`libvar`", "`eager_redistributed`"], rows)] if rows else []


def model_tables(runs):
    """Decode and prefill of whole decoders, vision towers: a table each, the runs with one thread and with two below one another."""
    lines = []
    for op, title, unit in (("decode", "Decode, whole decoder", "ms per step"),
                            ("prefill", "Prefill, whole decoder", "ms"),
                            ("vision", "Vision tower and projector", "ms")):
        rows, names = [], []
        cases = [(run, case) for run in runs for case in run.cases.values() if case.op == op]
        for name in MODEL:
            if any(case.median(name) for _, case in cases):
                names.append(name)
        for run, case in cases:
            base = case.median("libvar")
            # As in the bars; the quotient of the medians where a file has no ratio.
            bound = case.median("bound")
            share = case.values.get("ratio/bound/libvar", bound and bound / base)
            tokens = case.sizes.get("sequences", 1)
            row = [heading(case), run.context["threads"], f"{1e6 * tokens / base:.1f}" if op == "decode" else "",
                   f"{100 * share:.0f} %" if share else ""]
            for name in names:
                us = case.median(name)
                row.append("" if us is None else f"{us / 1e3:.1f}" + (f" ({us / base:.2f}×)" if name != "libvar" else ""))
            rows.append(row)
        if rows:
            said = f"{unit}; in brackets multiples of `libvar`'s"
            if "llama_cpp" in names:
                said += ". `llama_cpp` has a copy of the weights in the same type, as GGUF; no VAR"
            lines += [f"### {title}", "", said, "",
                      *table(["model", "threads", "tokens/s", "share of bound", *(f"`{n}`" for n in names)], rows)]
            lines += peaks_table([case for _, case in cases], names)
    return lines


def peaks_table(cases, names):
    rows = [[heading(case), *(f"{case.values[f'peak_bytes/{n}'] / 1e9:.2f} GB" if f"peak_bytes/{n}" in case.values else ""
                              for n in names)] for case in cases if "peak_bytes/libvar" in case.values]
    return ["Most memory that a call takes beside what is held before it (a CPU: resident), caches that it makes anew included:", "",
            *table(["model", *(f"`{n}`" for n in names)], rows)] if rows else []


def first_token_table(runs):
    """Tower and prompt together: what passes before the first token of a question about one picture."""
    rows = []
    for run in runs:
        towers = {(c.sizes["heads"], c.sizes["kv_heads"]): c for c in run.cases.values() if c.op == "vision"}
        for case in run.cases.values():
            tower = towers.get((case.sizes.get("heads"), case.sizes.get("kv_heads")))
            names = ("libvar", "transformers_sdpa")
            if case.op != "prefill" or tower is None or not all(c.median(n) for c in (case, tower) for n in names):
                continue
            own, peer = ((tower.median(n) + case.median(n)) / 1e3 for n in names)
            rows.append([heading(case), run.context["threads"], f"{own:.1f}", f"{peer:.1f} ({peer / own:.2f}×)"])
    return ["### First token", "", "ms: the picture and the prompt of the two tables above, one after the other.", "",
            *table(["model", "threads", "`libvar`", "`transformers_sdpa`"], rows)] if rows else []


def ask_table(run):
    cases = list(run.cases.values())
    seconds = lambda case, key: f"{case.values[key] / 1e3:.2f} s"
    rows = [[f"{case.dtype}, {case.name.rsplit('/', 1)[1]}", f"{case.values['archive_bytes'] / 1e9:.1f} GB",
             *(seconds(case, key) for key in ("load_ms", "vision_ms", "prefill_ms", "first_token_ms")),
             "{token_ms:.1f} ({token_ms_min:.1f} to {token_ms_max:.1f})".format(**case.values),
             f"{1e3 / case.values['token_ms']:.1f}", f"{case.values['peak_bytes'] / 1e9:.1f} GB"] for case in cases]
    values = cases[0].values
    return ["### A whole model through the command", "",
            f"`./dev bench ask`: {run.context['model']} at full depth, random weights, `var ask` about one picture, a prompt of "
            f"{values['prompt_tokens']:.0f} tokens, VAR on, threads: {run.context['threads']}; medians of {values['runs']} processes. "
            "Peak memory: the mapped archive included.", "",
            *table(["weights", "archive", "load", "picture", "prompt", "first token", "ms per token", "tokens/s", "peak memory"],
                   rows)]


def load_table(run):
    names = [name for name in LOAD if any(case.median(name) for case in run.cases.values())]
    rows = []
    for case in run.cases.values():
        cells = [(case.median(name), case.values["bytes"]) for name in names]
        rows.append([heading(case), run.context["threads"],
                     *("" if us is None else f"{us / 1e3:.0f} ms, {size / us / 1e3:.2f} GB/s" for us, size in cells)])
    return ["### Loading", "", "`./dev bench load`. " + "; ".join(f"`{name}`: {LOAD[name]}" for name in names) + ".", "",
            *table(["", "threads", *(f"`{name}`" for name in names)], rows)]


def panels(cases, names, most=9):
    result = []
    for case in cases:
        rows = [(*names[v], case.median(v)) for v in names if case.median(v) is not None]
        first, rest = rows[0], sorted(rows[1:], key=lambda row: row[2])
        result.append((heading(case), [first, *rest[:most]]))
    return result


def figures(device, run, whole):
    """{file name: (svg, sentence that says what it shows)}"""
    where = "one thread" if device == "cpu" else run.machine()
    chosen = [c for c in run.cases.values() if c.median("libvar") and not c.hot and c.sizes.get("sinks", 8) == 8]
    attention = [c for c in chosen if c.op == "attention" and c.dtype == "bf16"]
    decode = [c for c in attention if c.sizes["rows"] == 1]
    rows = [c for c in attention if c.sizes["rows"] > 1]
    result = {}

    def add(name, svg, sentence):
        result[f"bench_{device}_{name}.svg"] = (svg, sentence)

    cold = f"bf16, {where}, K and V not in the cache; shorter is better"
    if decode:
        add("decode", charts.bars("Attention of one new token", cold, panels(decode, VARIANTS)),
            "One decode step beside its peers")
    if rows:
        add("rows", charts.bars("Attention of the text rows of a prompt", cold, panels(rows, VARIANTS)),
            "Text rows of a prompt beside their peers")
    price = []
    for case in chosen:
        for a, b, value, low, high, at_most, _ in case.ratios():
            own = "libvar_kernel" if case.median("libvar_kernel") and case.op == "attention" else "libvar"
            same_kernel = "libvar_plain" if case.median("libvar_plain") else "libvar_one_class"
            if a == own and b in (same_kernel, "libvar_no_phi") and case.dtype == "bf16":
                price.append((f"{case.op}: {heading(case)}".replace(" bf16", ""), value, low, high, at_most,
                              case.values["aa_spread"]))
    if price:
        subtitle = f"time with it over time of the same kernel without it, bf16, {where}"
        add("price", charts.costs("What redistribution costs", subtitle, price), "The price of redistribution")
    moves = [c for c in chosen if c.op == "redistribute"]
    for op, title in (("decode", "One decode step of a whole decoder"), ("prefill", "Prefill of a whole decoder")):
        cases = [c for r in whole[:1] for c in r.cases.values() if c.op == op]
        if cases:
            add(f"model_{op}", charts.bars(title, f"{cases[0].dtype}, {where}, random weights; shorter is better",
                                           panels(cases, MODEL)), f"{title} beside its peers")
    if moves:
        add("redistribute",
            charts.bars("redistribute on attention probabilities", f"{where}; shorter is better",
                        panels(moves, REDISTRIBUTE)),
            "The probability-space op beside PyTorch operators and a copy")
    return result


def short_commit(commit):
    number, dash, rest = commit.partition("-")  # "-dirty" stays
    return number[:12] + dash + rest


def machine_lines(run, group):
    context = run.context
    facts = [("measured", context["date"][:16].replace("T", " ")),
             ("GPU", context.get("gpu")), ("driver", context.get("gpu_driver")),
             ("clocks at the start (SM, memory)", context.get("gpu_clocks_sm_mem")),
             ("CPU", f"{context['cpu']}, {context.get('cpu_cores', '?')} cores"), ("flags", context.get("cpu_flags")),
             ("threads", context.get("threads")), ("LibTorch", context.get("torch")), ("cuDNN", context.get("cudnn")),
             ("compiler", context.get("compiler")),
             ("load average at the start", " ".join(f"{x:.1f}" for x in context.get("load_avg", [])) or None)]
    for kind, unit in (("copy", "GB/s"), ("read", "GB/s"), ("matmul_bf16", "GFLOP/s")):
        rate = ceiling(run, context["device"], kind)
        if rate:
            facts.append((f"ceiling: {kind}", f"{rate:.0f} {unit}"))
    facts.append(("files, their commits", ", ".join(
        f"`bench/results/{r.file}` {short_commit(r.context.get('commit', 'unknown'))}" for r in group.values())))
    return table(["", ""], [[key, str(value)] for key, value in facts if value])


INTRO = """\
# Benchmarks

<!-- Written by bench/report.py from bench/results/*.json; `./dev bench kernels`, `model`, `load` and `ask` make both
anew. Do not edit. -->

`./dev bench kernels` checks every output against double precision, then times (bench/README.md says how). A ratio is the
median over rounds in which every variant runs once, in random order, in one process, each call on the next of several
copies of its inputs. **A/A spread**: the same code entered twice, how far from 1 the 95 % interval of its ratio to itself
reaches. A bar holds if the ratio is within it plus that spread; above a spread of 10 % nothing is decided. Numbers in
brackets after a time are multiples of libvar's. **Share of ceiling**: bytes each read or written once over libvar's time,
against the read rate (CPU) or copy rate (GPU) of the same run; for many rows, operations against the rate of a bf16
matrix product; for `redistribute`, the time of a copy of the same tensor over libvar's.

Whole decoders (`./dev bench model`) have random weights and as many layers as is said; libvar and transformers use the same
tensors. Eight visual tokens are sinks, VAR may change every layer. A step makes a token of each sequence. A CPU's **bound** is a read of all weights and the cache
in the same rounds, a GPU's a copy of as many bytes and, of a prefill, its operations at the rate of an 8192³ product.
"""


def section(device, machine, group, lines, pictures):
    run = with_peers(group["kernels"], group.get("peers"))
    lines += [f"## {'CPU' if device == 'cpu' else 'GPU'}: {machine}", "", *machine_lines(run, group)]
    whole = [group[kind] for kind in WHOLE if kind in group]
    for name, (svg, sentence) in figures(device, run, whole).items():
        pictures[name] = svg
        lines += [f"![{sentence}](images/{name})", ""]
    loads = [group["load"]] if "load" in group else []
    bars = bars_table([run, *(r for r in [*whole, *loads] if r.context["threads"] == "1" or device == "cuda")])
    lines += ["### Bars", "", *(bars or ["No case of this run has a bar.", ""]), *model_tables(whole)]
    lines += first_token_table(whole)
    if "ask" in group:
        lines += ask_table(group["ask"])
    for load in loads:
        lines += load_table(load)
    timed = {op: [c for c in run.cases.values() if c.op == op and c.median("libvar")]
             for op in ("layer", "attention", "redistribute", "rms_norm", "skinny_linear", "skinny_swiglu")}
    one_row = [c for c in timed["attention"] if c.sizes["rows"] == 1]
    several = [c for c in timed["attention"] if c.sizes["rows"] > 1]
    for title, cases, names in (("A layer of a decode step", timed["layer"], LAYER),
                                ("Attention of one row", one_row, VARIANTS),
                                ("Attention of several rows", several, VARIANTS),
                                ("redistribute", timed["redistribute"], REDISTRIBUTE),
                                ("RMSNorm with φ", timed["rms_norm"], NORM),
                                ("A linear map of a few rows", timed["skinny_linear"], LINEAR),
                                ("The gated half of an MLP for a few rows", timed["skinny_swiglu"], LINEAR)):
        if cases:
            lines += [f"### {title}", "", *times_table(run, cases, names), *memory_table(cases)]
    notes = [f"- {c.name}: {c.failed or c.note}"
             for r in group.values() for c in r.cases.values() if c.failed or c.note]
    if notes:
        lines += ["### Left out or failed", "", *notes, ""]


def glossary():
    names = {**VARIANTS, "eager_low_precision": REDISTRIBUTE["eager_low_precision"],
             "libvar_no_phi": NORM["libvar_no_phi"], "eager_with_phi": NORM["eager_with_phi"]}
    more = {"libvar_kernel": "libvar's kernel called past PyTorch's dispatcher, as the next",
            "libvar_plain": "the same kernel compiled without class logic, called past PyTorch's dispatcher",
            "libvar_one_class": "the op on keys that are all text and no sinks, redistribution off",
            "subtract": "four calls of SDPA (all keys, visual keys, visual sinks, sinks) merged by their logsumexp",
            "eager": "matmul, softmax in float32, matmul, K and V repeated for grouped heads (attention); PyTorch operators",
            "sdpa": "at::scaled_dot_product_attention without redistribution, `enable_gqa` for grouped heads"}
    return ["## Variants", "", *(f"- `{name}`: {more.get(name, said)}" for name, (said, _) in names.items()), ""]


def render(folder):
    runs = newest_runs(folder)
    lines, pictures = INTRO.splitlines() + [""], {}
    for device, absent in (("cpu", "No CPU measurement is in bench/results."),
                           ("cuda", "Nothing has been measured on a GPU: the CUDA cases are compiled for sm_90 and run at "
                                    "small sizes on the CPU (`bench/gpu.sh --dry-run`).")):
        found = {key: group for key, group in runs.items() if key[0] == device}
        if not found:
            lines += [f"## {'CPU' if device == 'cpu' else 'GPU'}", "", absent, ""]
        for number, ((_, machine), group) in enumerate(sorted(found.items())):
            page, first = {}, len(lines)
            section(device, machine, group, lines, page)
            if number:  # a second machine's pictures need names of their own
                for name in page:
                    other = name.replace(".svg", f"_{number + 1}.svg")
                    lines[first:] = [text.replace(f"(images/{name})", f"(images/{other})") for text in lines[first:]]
                page = {name.replace(".svg", f"_{number + 1}.svg"): svg for name, svg in page.items()}
            pictures.update(page)
    lines += glossary()
    return "\n".join(lines).rstrip() + "\n", pictures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--results", type=pathlib.Path, default=ROOT / "bench/results")
    parser.add_argument("--docs", type=pathlib.Path, default=ROOT / "docs")
    args = parser.parse_args()
    page, pictures = render(args.results)
    wanted = {args.docs / "benchmarks.md": page}
    wanted.update({args.docs / "images" / name: svg for name, svg in pictures.items()})
    present = set((args.docs / "images").glob("bench_*.svg"))
    if args.check:
        wrong = [path for path, content in wanted.items() if not path.exists() or path.read_text() != content]
        wrong += sorted(present - set(wanted))
        for path in wrong:
            print(f"report: {path} is not what {args.results} says; run python3 bench/report.py")
        return 1 if wrong else 0
    for path in present - set(wanted):
        path.unlink()
    for path, content in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
