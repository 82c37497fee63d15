"""The sample images and questions that ship with the model: scenes that no training step has seen."""

from __future__ import annotations

import json
import random
from pathlib import Path

from scenes import KINDS, Scene, random_question, random_scene, render_picture

OBJECTS = (3, 2, 3, 3, 1, 3, 3, 2)  # per image


def sample_scene(number: int, seed: int) -> tuple[Scene, random.Random]:
    """Draws scenes until one has the wanted number of objects."""
    wanted = OBJECTS[number]
    rng = random.Random(seed + number)
    while True:
        scene = random_scene(rng)
        if len(scene.objects) == wanted:
            return scene, rng


def render_samples(folder: Path, seed: int) -> None:
    (folder / "images").mkdir(exist_ok=True)
    lines = []
    for number in range(len(OBJECTS)):
        scene, rng = sample_scene(number, seed)
        name = f"scene_{number + 1}.png"
        render_picture(scene).save(folder / "images" / name, optimize=True)
        kinds = [KINDS[(3 * number + i) % len(KINDS)] for i in range(3)]
        for question in (random_question(scene, rng, kind) for kind in kinds):
            lines.append({"question_id": len(lines) + 1, "image": name, "text": question.text, "label": question.answer})
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
