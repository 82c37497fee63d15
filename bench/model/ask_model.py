#!/usr/bin/env python3
"""A whole model as a user has it: `var ask` on an archive of full depth with random weights, in bfloat16 and with int8 weights.

    python3 bench/model/ask_model.py --var build/release/bin/var --out FILE.json

Makes the checkpoint (LLaVA-1.5-7B: 14 GB) and two archives (14 and 8 GB) in --folder, where they stay until this ends. Every run
is a process of its own. Needs the Python standard library alone.
"""

import argparse
import datetime
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))
import rounds  # noqa: E402

MODEL = "llava-1.5-7b"
SINK_DIMS = "2533,1415"
QUESTION, PICTURE = "What is in the picture?", ROOT / "examples/demo_model/images/scene_1.png"


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"ask_model: {' '.join(map(str, command))}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def make_archives(args):
    """{"bf16": path, "int8": path}; the checkpoint is gone afterwards."""
    checkpoint = args.folder / "checkpoint"
    print(f"making {MODEL} in {args.folder}", file=sys.stderr, flush=True)
    run(sys.executable, ROOT / "tests/tools/make_random_checkpoint.py", MODEL, checkpoint, "--tokenizer",
        ROOT / "tests/golden/tokenizer")
    archives = {}
    for name, flags in (("bf16", []), ("int8", ["--quantize", "int8"])):
        archives[name] = args.folder / f"{name}.pt"
        begin = time.monotonic()
        run(args.var, "convert", checkpoint, archives[name], "--dtype", "bf16", "--sink-dims", SINK_DIMS, *flags)
        print(f"{archives[name]}: converted in {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    shutil.rmtree(checkpoint)
    return archives


def ask(args, archive, weights):
    threads = ["--threads", args.threads] if args.threads else []
    said = json.loads(run(args.var, "ask", archive, QUESTION, "--image", PICTURE, "--max-new-tokens", args.new_tokens,
                          "--device", args.device, "--weights", weights, "--json", *threads))
    timing = said["timing"]
    if timing["decode_tokens"] < 1:
        sys.exit(f"ask_model: {archive}: the answer has one token only, there is no step to time")
    return {"load_ms": timing["load_ms"], "vision_ms": timing["vision_ms"], "prefill_ms": timing["prefill_ms"],
            "first_token_ms": timing["vision_ms"] + timing["prefill_ms"],
            "token_ms": timing["decode_ms"] / timing["decode_tokens"], "peak_bytes": timing["peak_memory_bytes"],
            "prompt_tokens": len(said["prompt_tokens"])}


def measure(args, dtype, archive, weights):
    """A case: medians over the runs, and the least and most milliseconds of a token."""
    runs = []
    for number in range(args.runs):
        runs.append(ask(args, archive, weights))
        print(f"{dtype}, {weights}, run {number + 1}: " + ", ".join(f"{key} {value:.0f}" for key, value in runs[-1].items()),
              file=sys.stderr, flush=True)
    case = {"name": f"ask/{args.device}/{dtype}/{weights}", "runs": args.runs, "archive_bytes": archive.stat().st_size}
    case |= {key: statistics.median(one[key] for one in runs) for key in runs[0]}
    token_ms = [one["token_ms"] for one in runs]
    return case | {"token_ms_min": min(token_ms), "token_ms_max": max(token_ms)}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--var", type=pathlib.Path, required=True, help="the command")
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "build/bench/ask", help="for checkpoint and archives")
    parser.add_argument("--archive", nargs=2, metavar=("DTYPE", "FILE"), help="ask this one; none is made")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="default: the library's choice")
    parser.add_argument("--new-tokens", type=int, default=33)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, help="JSON file")
    parser.add_argument("--commit", default="unknown")
    return parser.parse_args()


def main():
    args = parse_arguments()
    context = {"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), "cpu": rounds.cpu_name(),
               "cpu_cores": str(os.cpu_count()), "device": args.device, "threads": str(args.threads or "default"),
               "sizes": "tiny" if args.archive else "full", "model": MODEL, "commit": args.commit,
               "load_avg": list(os.getloadavg())}
    if args.device == "cuda":
        context["gpu"] = run("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()[0]
    archives = {args.archive[0]: pathlib.Path(args.archive[1])} if args.archive else {}
    try:
        archives = archives or make_archives(args)
        # One archive after the other: both don't fit in the page cache of a machine with 24 GiB.
        cases = [measure(args, dtype, archive, weights) for dtype, archive in archives.items()
                 for weights in (("map", "copy") if args.device == "cpu" else ("map",))]
    finally:
        if not args.archive:
            shutil.rmtree(args.folder, ignore_errors=True)
    if args.out:
        args.out.write_text(json.dumps({"context": context, "benchmarks": cases}, indent=1) + "\n")
    print(json.dumps(cases, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
