#!/usr/bin/env python3
"""Renders held-out scenes and questions about them, as a question file: make_questions.py NUMBER OUT_DIR [--seed N]."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from scenes import random_question, random_scene, render_picture

HELD_OUT_SEED = 50_000_000  # as evaluation.py: no training step has seen these


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("number", type=int)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=HELD_OUT_SEED)
    args = parser.parse_args()
    (args.out / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(args.number):
        rng = random.Random(args.seed + number)
        scene = random_scene(rng)
        question = random_question(scene, rng)
        name = f"{number + 1}.png"
        render_picture(scene).save(args.out / "images" / name)
        lines.append({"question_id": number + 1, "image": name, "text": question.text, "label": question.answer})
    (args.out / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
