#!/usr/bin/env python3
"""Renders held-out scenes, their masks and questions about them: make_questions.py NUMBER OUT_DIR [--seed N].

OUT_DIR gets images/, masks/ (0 background, 1 object) and questions.jsonl.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from PIL import Image, ImageDraw

from scenes import MODEL_SIZE, PICTURE_SIZE, Scene, draw_shape, random_question, random_scene, render_picture

HELD_OUT_SEED = 50_000_000  # as evaluation.py: no training step has seen these


def render_mask(scene: Scene) -> Image.Image:
    """As PASCAL VOC: a palette picture, 0 background, 1 object."""
    mask = Image.new("P", (PICTURE_SIZE, PICTURE_SIZE), 0)
    mask.putpalette([0, 0, 0, 128, 0, 0])
    draw = ImageDraw.Draw(mask)
    for item in scene.objects:
        draw_shape(draw, item, PICTURE_SIZE / MODEL_SIZE, 1)
    return mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("number", type=int)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=HELD_OUT_SEED)
    args = parser.parse_args()
    for folder in ("images", "masks"):
        (args.out / folder).mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(args.number):
        rng = random.Random(args.seed + number)
        scene = random_scene(rng)
        question = random_question(scene, rng)
        name = f"{number + 1}.png"
        render_picture(scene).save(args.out / "images" / name)
        render_mask(scene).save(args.out / "masks" / name)
        lines.append({"question_id": number + 1, "image": name, "text": question.text, "label": question.answer})
    (args.out / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
