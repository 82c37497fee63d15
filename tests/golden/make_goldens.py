#!/usr/bin/env python3
"""Makes the golden data of tests/golden; README.md says how and what."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch  # noqa: E402

from goldens import bpe, decode, families, family_mistakes, inputs, inspection, mistakes, photos, search, store, tokenizer, vectors  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["all", "tokenizer", "text", "bpe", "families", "photos", "decode", "inputs", "cases", "check",
                                          "mistakes", "family_mistakes", "inspection", "search"])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    steps = {"tokenizer": tokenizer.make, "text": vectors.make, "bpe": bpe.make, "families": lambda: families.make(args.names), "photos": photos.make, "decode": decode.make,
             "inputs": inputs.make, "cases": lambda: store.make(args.names), "check": lambda: store.check(args.names),
             "mistakes": mistakes.make, "family_mistakes": family_mistakes.make, "inspection": inspection.make}
    if args.what == "search":
        search.search(*args.names)
    elif args.what == "all":
        photos.copy_photos()
        for step in steps.values():
            step()
    else:
        steps[args.what]()


if __name__ == "__main__":
    main()
