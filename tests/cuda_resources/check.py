#!/usr/bin/env python3
"""Holds the CUDA kernels to their resource budget, without a GPU.

Compiles every kernels/cuda/*.cu to machine code, reads what ptxas says of each kernel, and fails where one spills, uses
local memory (a stack frame), or needs more registers or static shared memory than budget.json allows. Dynamic shared
memory is asked for at run time; launch.cuh bounds it.

    check.py                          all four architectures
    check.py --architectures 80,90    these
    check.py --write-budget           takes over what was measured, registers rounded up to the 8 that hardware deals in
    check.py --write-table            docs/cuda-resources.md
"""

import argparse
import concurrent.futures
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUDGET = pathlib.Path(__file__).with_name("budget.json")
TABLE = ROOT / "docs" / "cuda-resources.md"
ARCHITECTURES = [80, 90, 100, 120]
FLAGS = ["-std=c++17", "-O3", "-Ikernels", "-Ikernels/include", "-Xptxas", "-v", "-cubin"]
FIELDS = ["registers", "shared_bytes"]
HOST_ONLY = ["attention_launch.cu"]  # chooses among the kernels and has none of its own


def find_nvcc(named):
    for candidate in [named, shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]:
        if candidate and pathlib.Path(candidate).exists():
            return candidate
    sys.exit("check.py: no nvcc found; name one with --nvcc")


def demangle(names):
    done = subprocess.run(["c++filt"], input="\n".join(names), text=True, capture_output=True, check=True)
    return done.stdout.splitlines()


def short_name(name):
    """void libvar::cuda::k<__nv_bfloat16, 1>(Arguments<...>) -> k<bf16, 1>"""
    name = re.sub(r"^void |libvar::cuda::|libvar::|\(anonymous namespace\)::", "", name)
    depth = 0
    for i, c in enumerate(name):
        depth += {"<": 1, ">": -1}.get(c, 0)
        if c == "(" and depth == 0:
            name = name[:i]
            break
    name = re.sub(r"\((?:int|bool|unsigned int)\)", "", name)
    return name.replace("signed char", "int8").replace("__nv_bfloat16", "bf16").replace("__half", "fp16").replace("float", "fp32")


def parse(text):
    """What ptxas -v says, by mangled kernel name."""
    kernels = {}
    current = None
    for line in text.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)'", line):
            current = kernels.setdefault(match.group(1), {"shared_bytes": 0})
        elif current is None:
            continue
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            current["stack"], stores, loads = map(int, match.groups())
            current["spills"] = stores + loads
        elif match := re.search(r"Used (\d+) registers", line):
            current["registers"] = int(match.group(1))
            if match := re.search(r"(\d+) bytes smem", line):
                current["shared_bytes"] = int(match.group(1))
    return kernels


def compile_one(nvcc, source, architecture):
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, f"-arch=sm_{architecture}", *FLAGS, "-o", f"{folder}/kernels.cubin", str(source)]
        done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    kernels = parse(done.stderr)
    if not kernels:
        sys.exit(f"check.py: ptxas named no kernel in {source}")
    return {short_name(name): kernels[mangled] for mangled, name in zip(kernels, demangle(list(kernels)))}


def measure(nvcc, architectures, jobs):
    """{kernel: {"sm_80": {"registers": ...}}}"""
    measured = {}
    sources = sorted(p for p in (ROOT / "kernels" / "cuda").glob("*.cu") if p.name not in HOST_ONLY)
    work = [(source.relative_to(ROOT), a) for a in architectures for source in sources]
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for (source, architecture), kernels in zip(work, pool.map(lambda w: compile_one(nvcc, *w), work)):
            for name, use in kernels.items():
                if f"sm_{architecture}" in measured.setdefault(name, {}):
                    sys.exit(f"check.py: two kernels are called {name}; the second is in {source}")
                measured[name][f"sm_{architecture}"] = use
    return measured


def judge(measured, budget, architectures):
    """Every way in which the kernels break the budget."""
    problems = []
    for name, by_architecture in sorted(measured.items()):
        for architecture, use in by_architecture.items():
            where = f"{name} on {architecture}"
            if use["spills"] or use["stack"]:
                problems.append(f"{where}: {use['spills']} bytes spilled, {use['stack']} bytes of stack")
            allowed = budget.get(name, {}).get(architecture)
            if allowed is None:
                problems.append(f"{where}: not in the budget (--write-budget takes it over)")
                continue
            for field in FIELDS:
                if use[field] > allowed[field]:
                    problems.append(f"{where}: {use[field]} {field}, allowed are {allowed[field]}")
    for name, by_architecture in sorted(budget.items()):
        if name not in measured and any(f"sm_{a}" in by_architecture for a in architectures):
            problems.append(f"{name}: in the budget, but there is no such kernel")
    return problems


def table(measured, architectures):
    heads = [f"sm_{a}" for a in architectures]
    lines = ["| kernel | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name, by_architecture in sorted(measured.items()):
        cells = []
        for head in heads:
            use = by_architecture[head]
            cell = str(use["registers"])
            if use["shared_bytes"]:
                cell += f", {use['shared_bytes']} B shared"
            if use["spills"] or use["stack"]:
                cell += f", **{use['spills']} B spilled, {use['stack']} B stack**"
            cells.append(cell)
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write_table(text, version):
    TABLE.write_text(f"""# Registers of the CUDA kernels

Written by `./dev resources --write-table`; {version}. Registers of a thread, as ptxas counts them. No kernel spills or
uses local memory: `tests/cuda_resources/check.py` fails otherwise, and where a kernel needs more than
`tests/cuda_resources/budget.json` allows. Shared memory is dynamic, bounded by `kMostSharedBytes` of
`kernels/cuda/launch.cuh`; what a kernel has of it statically would be named here.

{text}""")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nvcc")
    parser.add_argument("--architectures", default=",".join(map(str, ARCHITECTURES)))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--write-budget", action="store_true")
    parser.add_argument("--write-table", action="store_true")
    args = parser.parse_args()
    architectures = [int(a) for a in args.architectures.split(",")]
    if (args.write_budget or args.write_table) and architectures != ARCHITECTURES:
        parser.error("what is written covers all architectures")
    nvcc = find_nvcc(args.nvcc)
    measured = measure(nvcc, architectures, args.jobs)
    text = table(measured, architectures)
    print(text)
    if args.write_budget:
        budget = {name: {a: {"registers": (use["registers"] + 7) // 8 * 8, "shared_bytes": use["shared_bytes"]}
                         for a, use in by_architecture.items()} for name, by_architecture in sorted(measured.items())}
        rows = [f"  {json.dumps(name)}: {json.dumps(allowed)}" for name, allowed in budget.items()]
        BUDGET.write_text("{\n" + ",\n".join(rows) + "\n}\n")
    problems = judge(measured, json.loads(BUDGET.read_text()), architectures)
    for problem in problems:
        print(f"over budget: {problem}")
    if args.write_table and not problems:
        lines = subprocess.run([nvcc, "--version"], text=True, capture_output=True, check=True).stdout
        write_table(text, "nvcc " + re.search(r"V(\d+\.\d+\.\d+)", lines).group(1))
    print(f"{len(measured)} kernels, {len(architectures)} architectures, {len(problems)} problems")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
