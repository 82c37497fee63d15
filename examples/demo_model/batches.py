"""Training batches: packed questions behind each image, each blind to the others."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch

from scenes import (
    COLOR_NAMES, GRID, PLACES, SHAPES, Scene, model_pixels, packed_questions, patch_coverage, patch_labels, random_scene, render_picture,
)
from tokenizer import Tokenizer

IMAGE_TOKENS = GRID * GRID
TRAINING_NUMBERS = (1, 2, 2, 3, 3)  # scenes with one object teach little: every question is about that object
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass
class Batch:
    pixels: torch.Tensor  # [B, 3, S, S]
    ids: torch.Tensor  # [B, N]
    positions: torch.Tensor  # [B, N]
    mask: torch.Tensor  # [B, 1, N, N], 0 or -inf
    rows: torch.Tensor  # flattened rows whose next token belongs to an answer
    targets: torch.Tensor
    answers: torch.Tensor  # which answer of the batch each of those rows belongs to
    kinds: list[str]  # per answer
    shape: torch.Tensor  # per patch labels
    color: torch.Tensor
    sink: torch.Tensor
    words: torch.Tensor  # [W, 2]: image and row of each question's word
    ends: torch.Tensor  # [W, 2]: image and row of each prompt's last token
    focus: torch.Tensor  # [W, N]: where attention should go from the word
    found: torch.Tensor  # [W, 3]: shape, colour and place of the object that the word fits; -100 where it fits several
    visual_sinks: torch.Tensor  # [B, N]: keys
    visual_rest: torch.Tensor
    text_rows: torch.Tensor  # [B, N]: rows behind the image


def normalise(pixels: np.ndarray) -> torch.Tensor:
    """[B, S, S, 3] uint8 to what the image processor returns."""
    scaled = torch.from_numpy(pixels.astype(np.float64) * (1 / 255)).float()
    return ((scaled - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2).contiguous()


def pack(questions, tokenizer: Tokenizer):
    """One row of the batch: ids, positions, segment numbers (0 = prefix, seen by all), (row, target, question) for each answer token,
    the row of each question's word, and the row of each prompt's end."""
    ids = tokenizer.prefix + [tokenizer.image_id] * IMAGE_TOKENS
    positions, segments, wanted, words, ends = list(range(len(ids))), [0] * len(ids), [], [], []
    start = len(ids)
    for number, question in enumerate(questions):
        prompt, answer = tokenizer.question(question.text), tokenizer.answer(question.answer)
        tokens = prompt + answer[:-1]
        wanted += [(len(ids) + len(prompt) - 1 + i, token, number) for i, token in enumerate(answer)]
        words.append(len(ids) + len(prompt) - 1 - prompt[::-1].index(tokenizer.word(question.word)))
        ends.append(len(ids) + len(prompt) - 1)
        positions += range(start, start + len(tokens))
        segments += [number + 1] * len(tokens)
        ids += tokens
    return ids, positions, segments, wanted, words, ends


def block_mask(segments: torch.Tensor) -> torch.Tensor:
    length = segments.shape[1]
    visible = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
    visible &= torch.ones(length, length, dtype=torch.bool).tril()
    return torch.zeros(visible.shape).masked_fill(~visible, float("-inf"))[:, None]


def focus_rows(scene: Scene, questions, sink: np.ndarray, image_start: int, length: int) -> np.ndarray:
    """[questions, length]: the patches of the objects that a question is about, or the sinks (BOS and visual) where nothing fits."""
    seen = (patch_coverage(scene) > 0.12) & ~sink
    focus = np.zeros((len(questions), length), dtype=bool)
    for row, question in zip(focus, questions):
        row[image_start : image_start + IMAGE_TOKENS] = seen[question.objects].any(0) if question.objects else sink
        row[0] = not question.objects
    return focus


def found_labels(scene: Scene, question) -> tuple[int, int, int]:
    if not question.objects:
        return len(SHAPES), len(COLOR_NAMES), len(PLACES)
    if len(question.objects) > 1:
        return -100, -100, -100
    item = scene.objects[question.objects[0]]
    return SHAPES.index(item.shape), COLOR_NAMES.index(item.color), item.place


def make_batch(rng: random.Random, tokenizer: Tokenizer, images: int, questions: int) -> Batch:
    pictures, labels, packed, kinds, asked_of = [], [], [], [], []
    for _ in range(images):
        scene = random_scene(rng, TRAINING_NUMBERS)
        pictures.append(model_pixels(render_picture(scene)))
        labels.append(patch_labels(scene))
        asked = packed_questions(scene, rng, questions)
        packed.append(pack(asked, tokenizer))
        asked_of.append((scene, asked))
        kinds += [q.kind for q in asked]
    length = max(len(p[0]) for p in packed)

    def column(index: int, fill: int) -> torch.Tensor:
        return torch.tensor([p[index] + [fill] * (length - len(p[index])) for p in packed])

    rows, targets, answers = [], [], []
    for image, (_, _, _, wanted, _, _) in enumerate(packed):
        for row, target, number in wanted:
            rows.append(image * length + row)
            targets.append(target)
            answers.append(image * questions + number)
    shape, color, sink = (torch.from_numpy(np.stack(part)) for part in zip(*labels))
    words, ends = (torch.tensor([(image, row) for image, p in enumerate(packed) for row in p[part]]) for part in (4, 5))
    focus = [focus_rows(scene, asked, label[2], len(tokenizer.prefix), length) for (scene, asked), label in zip(asked_of, labels)]
    segments = column(2, -1)
    start = len(tokenizer.prefix)
    visual_sinks, visual_rest = torch.zeros(2, *segments.shape, dtype=torch.bool)
    visual_sinks[:, start : start + IMAGE_TOKENS] = sink
    visual_rest[:, start : start + IMAGE_TOKENS] = ~sink
    return Batch(
        normalise(np.stack(pictures)), column(0, tokenizer.pad_id), column(1, 0), block_mask(segments),
        torch.tensor(rows), torch.tensor(targets), torch.tensor(answers), kinds, shape, color, sink,
        words, ends, torch.from_numpy(np.concatenate(focus)), torch.tensor([found_labels(scene, q) for scene, asked in asked_of for q in asked]),
        visual_sinks, visual_rest, segments > 0,
    )
