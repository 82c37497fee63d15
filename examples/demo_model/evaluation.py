"""Measures an exported checkpoint: accuracy with VAR off and on, the sinks, what VAR selects, and agreement with transformers."""

from __future__ import annotations

import io
import json
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from checkpoint import read_checkpoint
from model import SINK_DIM
from redistribution import Statistics, VarSettings, answer, decode
from scenes import GRID, KINDS, Question, patch_coverage, random_question, random_scene, render_picture

HELD_OUT_SEED = 50_000_000
BATCH = 64


def image_processor(folder: Path):
    from transformers import CLIPImageProcessorPil  # the Pillow class: torchvision's differs by a level here and there

    return CLIPImageProcessorPil.from_pretrained(folder)


def through_png(picture: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return Image.open(io.BytesIO(buffer.getvalue()))


def held_out(number: int, seed: int = HELD_OUT_SEED):
    """Fresh scenes, one question each, the kinds in equal shares."""
    result = []
    for index in range(number):
        rng = random.Random(seed + index)
        scene = random_scene(rng)
        result.append((scene, random_question(scene, rng, KINDS[index % len(KINDS)])))
    return result


@torch.no_grad()
def see(model, processor, pictures: list[Image.Image]) -> torch.Tensor:
    parts = []
    for start in range(0, len(pictures), BATCH):
        pixels = processor(images=pictures[start : start + BATCH], return_tensors="pt")["pixel_values"]
        parts.append(model.visual_tokens(pixels)[0])
    return torch.cat(parts)


def answer_all(model, tokenizer, visual: torch.Tensor, questions: list[Question], settings: VarSettings) -> list[str]:
    """One question per image. Images with the same question share a batch, so nothing is padded."""
    same = defaultdict(list)
    for index, question in enumerate(questions):
        same[question.text].append(index)
    answers = [""] * len(questions)
    for text, members in same.items():
        for start in range(0, len(members), BATCH):
            chunk = members[start : start + BATCH]
            for index, said in zip(chunk, answer(model, tokenizer, visual[chunk], text, settings)):
                answers[index] = said
    return answers


def accuracy(questions: list[Question], answers: list[str]) -> dict[str, float]:
    right = defaultdict(list)
    for question, said in zip(questions, answers):
        right[question.kind].append(said == question.answer)
    table = {kind: float(np.mean(right[kind])) for kind in KINDS if right[kind]}
    return {"all": float(np.mean([said == q.answer for q, said in zip(questions, answers)])), **table}


def sink_report(model, tokenizer, visual: torch.Tensor, scenes, questions: list[Question], settings: VarSettings) -> dict:
    """Per layer: phi of sinks and others, attention on them, selected pairs. Rows are the text rows behind the image, prompt and generated."""
    start = len(tokenizer.prefix)
    images = GRID * GRID
    layers = defaultdict(lambda: defaultdict(list))
    background, per_image, median = [], [], []
    for index, question in enumerate(questions):
        statistics = Statistics()
        answer(model, tokenizer, visual[index : index + 1], question.text, settings, statistics)
        for number, record in enumerate(statistics.layers):
            phi = record.phi[0]
            sink = phi >= settings.tau
            store = layers[number]
            store["phi_bos"].append(phi[0].item())
            store["phi_visual_sink"] += phi[start : start + images][sink[start : start + images]].tolist()
            store["phi_other_max"].append(phi[~sink].max().item())
            store["other_text_sinks"].append(int(sink[1:].sum() - sink[start : start + images].sum()))
            for name in ("text_sink_mass", "visual_sink_mass", "visual_mass"):
                store[name].append(getattr(record, name).mean((0, 2)))
            if record.selected is not None:
                store["selected"].append((record.selected.float().sum().item(), record.selected.numel()))
                store["selected_by_head"].append(record.selected.float().mean((0, 2)))
            if number == 1:
                patches = sink[start : start + images].nonzero().flatten().tolist()
                covered = patch_coverage(scenes[index]).sum(0)
                per_image.append(len(patches))
                background += [bool(covered[p] == 0) for p in patches]
    report = {
        "sinks_per_image": {str(n): per_image.count(n) for n in sorted(set(per_image))},
        "visual_sinks": len(background), "share_on_pure_background": float(np.mean(background)) if background else None, "layers": {},
    }
    for number, store in layers.items():
        report["layers"][number] = layer_summary(store)
    return report


@torch.no_grad()
def phi_report(model, tokenizer, visual: torch.Tensor, scenes, tau: float) -> dict:
    """Over all held-out images: phi of sinks and of all other tokens, the gap between them, sinks per image, and what the sink patches show."""
    start, images = len(tokenizer.prefix), GRID * GRID
    prompt = torch.tensor([tokenizer.prefix + [tokenizer.image_id] * images + tokenizer.question("How many objects are in the image?")])
    parts: dict[int, list[torch.Tensor]] = defaultdict(list)
    for chunk in visual.split(BATCH):
        ids = prompt.expand(len(chunk), -1)
        statistics = Statistics()
        decode(model, model.embed(ids, chunk, start), ids == tokenizer.image_id, VarSettings(p=0.0), statistics)
        for number, record in enumerate(statistics.layers):
            parts[number].append(record.phi)
    report: dict = {"images": len(visual), "layers": {}}
    for number, tensors in parts.items():
        phi = torch.cat(tensors)
        sink = phi >= tau
        report["layers"][number] = {
            "sink_min": phi[sink].min().item(), "other_max": phi[~sink].max().item(), "others_above_10": int(((phi > 10) & ~sink).sum()),
            "text_sinks_besides_bos": int(sink[:, 1:start].sum() + sink[:, start + images :].sum()),
        }
    at_patches = torch.cat(parts[1])[:, start : start + images] >= tau
    per_image = at_patches.sum(1).tolist()
    touched = torch.from_numpy(np.stack([patch_coverage(scene).sum(0) > 0 for scene in scenes]))
    report["sinks_per_image"] = {number: per_image.count(number) for number in sorted(set(per_image))}
    report["share_on_pure_background"] = 1 - (at_patches & touched).sum().item() / at_patches.sum().item()
    return report


def layer_summary(store) -> dict:
    def by_head(name: str) -> list[float]:
        return [round(v, 3) for v in torch.stack(store[name]).mean(0).tolist()]

    sinks = store["phi_visual_sink"] or [float("nan")]
    summary = {
        "phi_bos_min": min(store["phi_bos"]), "phi_visual_sink_min": min(sinks), "phi_visual_sink_mean": float(np.mean(sinks)),
        "phi_other_max": max(store["phi_other_max"]), "text_sinks_besides_bos": sum(store["other_text_sinks"]),
    }
    for name in ("text_sink_mass", "visual_sink_mass", "visual_mass"):
        heads = by_head(name)
        summary[name] = {"mean": round(float(np.mean(heads)), 3), "by_head": heads}
    if store["selected"]:
        summary["selected_share"] = sum(a for a, _ in store["selected"]) / sum(b for _, b in store["selected"])
        summary["selected_by_head"] = by_head("selected_by_head")
    return summary


@torch.no_grad()
def compare_with_transformers(folder: Path, model, tokenizer, pictures, questions: list[Question]) -> dict:
    """Logits of the prompt's last token and greedy answers from LlavaForConditionalGeneration with eager attention, float32."""
    from transformers import AutoTokenizer, LlavaForConditionalGeneration

    reference = LlavaForConditionalGeneration.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    fast = AutoTokenizer.from_pretrained(folder)
    processor = image_processor(folder)
    off = VarSettings(p=0.0)
    worst, same_ids, same_answers = 0.0, True, True
    for picture, question in zip(pictures, questions):
        pixels = processor(images=[picture], return_tensors="pt")["pixel_values"]
        prompt = f"USER: {'<image>' * (GRID * GRID)}\n{question.text} ASSISTANT:"
        ids = fast(prompt, return_tensors="pt")["input_ids"]
        mine = tokenizer.prefix + [tokenizer.image_id] * (GRID * GRID) + tokenizer.question(question.text)
        same_ids &= ids[0].tolist() == mine
        theirs = reference(input_ids=ids, pixel_values=pixels).logits[0, -1]
        ours = last_logits(model, tokenizer, see(model, processor, [picture]), question, off)
        worst = max(worst, ((theirs - ours).abs().max() / theirs.abs().max()).item())
        said = reference.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=8, do_sample=False)
        text = fast.decode(said[0, ids.shape[1] :], skip_special_tokens=True)
        same_answers &= text.removeprefix(" ") == answer(model, tokenizer, see(model, processor, [picture]), question.text, off)[0]
    return {"prompts": len(questions), "largest_relative_logit_difference": worst, "same_token_ids": same_ids, "same_answers": same_answers}


def last_logits(model, tokenizer, visual_tokens, question: Question, settings: VarSettings) -> torch.Tensor:
    ids = torch.tensor([tokenizer.prefix + [tokenizer.image_id] * visual_tokens.shape[1] + tokenizer.question(question.text)])
    visual = ids == tokenizer.image_id
    return decode(model, model.embed(ids, visual_tokens, len(tokenizer.prefix)), visual, settings)[0]


def median_magnitude(model, tokenizer, visual: torch.Tensor, question: Question) -> list[dict]:
    """BOS's value in the sink dimension against the median magnitude of the layer's hidden state."""
    entering = []
    hooks = [
        layer.input_layernorm.register_forward_pre_hook(lambda _, args: entering.append(args[0][0].detach()))
        for layer in model.language_model.model.layers
    ]
    last_logits(model, tokenizer, visual, question, VarSettings(p=0.0))
    for hook in hooks:
        hook.remove()
    return [{"bos": round(x[0, SINK_DIM].item(), 1), "median": round(x.abs().median().item(), 4)} for x in entering]


def evaluate(folder: Path, scenes: int, report_scenes: int = 120, seed: int = HELD_OUT_SEED) -> dict:
    model, tokenizer = read_checkpoint(folder)
    processor = image_processor(folder)
    data = held_out(scenes, seed)
    questions = [question for _, question in data]
    pictures = [through_png(render_picture(scene)) for scene, _ in data]
    visual = see(model, processor, pictures)
    off, on = VarSettings(p=0.0), VarSettings()
    answers_off = answer_all(model, tokenizer, visual, questions, off)
    answers_on = answer_all(model, tokenizer, visual, questions, on)
    some = slice(0, report_scenes)
    return {
        "scenes": scenes,
        "accuracy_off": accuracy(questions, answers_off),
        "accuracy_on": accuracy(questions, answers_on),
        "changed_answers": sum(a != b for a, b in zip(answers_off, answers_on)),
        "wrong": [(q.text, q.answer, said) for q, said in zip(questions, answers_off) if said != q.answer][:12],
        "sinks": sink_report(model, tokenizer, visual[some], [s for s, _ in data][some], questions[some], on),
        "phi": phi_report(model, tokenizer, visual, [scene for scene, _ in data], on.tau),
        "hidden_state": median_magnitude(model, tokenizer, visual[:1], questions[0]),
        "transformers": compare_with_transformers(folder, model, tokenizer, pictures[:12], questions[:12]),
    }


def ask_samples(folder: Path, examples: Path) -> dict:
    """The questions of questions.jsonl, VAR off and on, and what VAR selects on them."""
    model, tokenizer = read_checkpoint(folder)
    processor = image_processor(folder)
    lines = [json.loads(line) for line in (examples / "questions.jsonl").read_text().splitlines()]
    rows, shares = [], defaultdict(list)
    for line in lines:
        visual = see(model, processor, [Image.open(examples / "images" / line["image"]).convert("RGB")])
        statistics = Statistics()
        said_off = answer(model, tokenizer, visual, line["text"], VarSettings(p=0.0))[0]
        said_on = answer(model, tokenizer, visual, line["text"], VarSettings(), statistics)[0]
        for number, record in enumerate(statistics.layers):
            if record.selected is not None:
                shares[number].append((record.selected.sum().item(), record.selected.numel()))
        rows.append({"question": line["text"], "label": line["label"], "off": said_off, "on": said_on})
    selected = {number: sum(a for a, _ in pairs) / sum(b for _, b in pairs) for number, pairs in shares.items()}
    pooled = [pair for pairs in shares.values() for pair in pairs]
    return {
        "questions": rows, "right_off": sum(r["off"] == r["label"] for r in rows), "right_on": sum(r["on"] == r["label"] for r in rows),
        "selected_share": selected, "selected_share_eligible_layers": sum(a for a, _ in pooled) / sum(b for _, b in pooled),
    }
