"""Which questions the tiny models answer, under which settings, and what is recorded of each answer."""

from dataclasses import asdict, replace

import torch
from tokenizers import Tokenizer

from . import model as models
from .paths import TOKENIZER
from .questions import QUESTIONS
from .var import VarParams

SYSTEM = ("A chat between a curious user and an artificial intelligence assistant. "
          "The assistant gives helpful, detailed, and polite answers to the user's questions.")
LANDSCAPE, PORTRAIT, TINY, FLAT = (f"images/{n}.png" for n in ("landscape", "portrait", "tiny", "flat"))

# What a golden must keep clear of, so that rounding cannot change a decision (README.md).
LEAST = {"ratio": 1.2e-4, "mass": 1.2e-4, "phi": 1e-3, "gap": 1e-3}
SHARE = (0.1, 0.9)


def run(name: str, images: list[str], var: VarParams | None, tokens: int = 64, **more) -> dict:
    """style None: the layout's own prompt and image mode. keep: tensors recorded beside the logits."""
    return {"name": name, "images": images, "var": var, "tokens": tokens, "style": None, "mode": None, "keep": (), **more}


DEFAULT = VarParams()
HALLUCINATION = VarParams(rho=0.5)
VISION_CENTRIC = VarParams(rho=0.9)
ALWAYS = VarParams(rho=0.0, min_visual_mass=0.0)


def plan(case: str) -> list[dict]:
    """The runs of a case; questions.py holds the question of each, chosen so that the margins hold."""
    one, two, none = [LANDSCAPE], [PORTRAIT, LANDSCAPE], []
    table = {
        "mha": [
            run("off", one, None, keep=("pixel_values", "features")), run("on", one, DEFAULT, keep=("phi", "selected")),
            run("two_images", two, DEFAULT, keep=("features", "phi", "selected")), run("no_sink_image_first", [FLAT, PORTRAIT], DEFAULT),
            run("text_only", none, DEFAULT), run("reference", one, VarParams.reference(), keep=("phi", "selected")),
            run("include_last", [PORTRAIT], replace(HALLUCINATION, first_layer=0, include_last_layer=True)),
            run("target_text", one, replace(DEFAULT, targets=("TN",))),
            run("target_both", one, replace(DEFAULT, targets=("VN", "TN"))),
            run("source_visual", one, replace(DEFAULT, sources=("VS",))),
            run("all_heads", one, replace(DEFAULT, head_rule="all")),
            run("remove_sinks", [PORTRAIT], replace(DEFAULT, p=1.0), style="vicuna_v1", mode="pad"),
        ],
        "gqa": [
            run("off", one, None, keep=("pixel_values", "features")), run("on", one, DEFAULT, keep=("phi", "selected")),
            run("two_images", [TINY, PORTRAIT], HALLUCINATION, keep=("phi", "selected")),
            run("text_only", none, None),
            run("reference", [PORTRAIT], VarParams.reference(), keep=("phi", "selected")),
            run("llava_prompt", [PORTRAIT], DEFAULT, style="llava", mode="crop"),
        ],
        "odd": [
            run("off", [PORTRAIT], None, keep=("pixel_values", "features")),
            run("on", [PORTRAIT], DEFAULT, keep=("phi", "selected")), run("tiny", [TINY], HALLUCINATION),
            run("raw", two, VISION_CENTRIC, style="raw", keep=("phi", "selected")),
        ],
    }
    # Half types: 32 tokens, the same for both precisions.
    half = [run("off", one, None, tokens=32), run("on", one, DEFAULT, tokens=32, keep=("selected",)),
            run("always", one, ALWAYS, tokens=32)]
    runs = table.get(case, half)
    return [{**item, "question": QUESTIONS.get(f"{case}/{item['name']}", "")} for item in runs]


def prompt_text(style: str, question: str, images: int) -> str:
    """The whole prompt; a question that names no <image> gets one line of it per image in front."""
    if style == "raw":
        return question
    if "<image>" not in question:
        question = "<image>\n" * images + question
    start = SYSTEM + " " if style == "vicuna_v1" else ""
    return f"{start}USER: {question} ASSISTANT:"


def defaults(case: dict, item: dict) -> tuple[str, str]:
    """Prompt style and image mode: the item's own, or those of the checkpoint's layout."""
    original = case["layout"] == "original"
    return item["style"] or ("vicuna_v1" if original else "llava"), item["mode"] or ("pad" if original else "crop")


def gaps(logits: torch.Tensor) -> torch.Tensor:
    """Per row the distance of the largest logit to the next, as a share of the row's largest magnitude."""
    top = logits.float().topk(2, dim=-1).values
    return (top[:, 0] - top[:, 1]) / logits.float().abs().amax(-1)


def good(state, logits: torch.Tensor, item: dict, final: bool) -> bool:
    """Whether a run, or the part of it made so far, keeps clear of every threshold."""
    margins = state.margins
    if float(gaps(logits).min()) < LEAST["gap"] or margins.phi < LEAST["phi"]:
        return False
    if item["var"] is None or not item["images"] or item["var"] == ALWAYS:
        return True
    if item["var"].head_rule == "ratio" and (margins.ratio < LEAST["ratio"] or margins.mass < LEAST["mass"]):
        return False
    if item["var"].head_rule == "all" or not final:
        return True
    return SHARE[0] <= margins.selected / max(margins.eligible, 1) <= SHARE[1]


def used_columns(case: dict, logits: torch.Tensor) -> torch.Tensor:
    """The logits that a checkpoint in the case's own layout has: the original layout has no rows for added tokens."""
    return logits[:, : case["original"]["rows"]] if case["layout"] == "original" else logits


def var_dictionary(params: VarParams | None) -> dict:
    if params is None:
        return {"enabled": False}
    out = asdict(params)
    out.update(enabled=True, sources=list(params.sources), targets=list(params.targets))
    return out


def fed_ids(case: dict, ids: list[int]) -> list[int]:
    """prompt_tokens as reported: the original layout has no id for the image token."""
    image = case["original"]["image_token_id"] if case["layout"] == "original" else case["image_token_id"]
    return [image if token == case["image_token_id"] else token for token in ids]


def record(model, case: dict, item: dict) -> tuple[dict, dict[str, torch.Tensor]]:
    """Runs one item: its manifest entry and its tensors. Raises where a margin does not hold."""
    style, mode = defaults(case, item)
    text = prompt_text(style, item["question"], len(item["images"]))
    prompt = models.prepare(model, case, text, item["images"], mode)
    state = models.new_state(case, prompt, item["var"])
    tokens, logits = models.generate(model, prompt, state, item["tokens"])
    assert good(state, logits, item, True), (case["name"], item["name"], state.margins, float(gaps(logits).min()))
    again = models.teacher_forced(model, prompt, tokens, models.new_state(case, prompt, item["var"]))
    noise = float((again - logits).abs().max() / logits.abs().max())
    assert noise < 5e-6, (case["name"], item["name"], noise)
    name, rows = item["name"], used_columns(case, logits)
    entry = {"name": name, "prompt_style": style, "image_mode": mode, "question": item["question"], "prompt": text,
             "images": item["images"], "var": var_dictionary(item["var"]), "max_new_tokens": item["tokens"],
             "prompt_tokens": fed_ids(case, prompt.ids), "visual_spans": prompt.spans, "tokens": tokens,
             "text": Tokenizer.from_file(str(TOKENIZER / "tokenizer.json")).decode(tokens),
             "logits_max": float(logits.abs().max()), "least_gap": float(gaps(logits).min()), "noise": noise,
             "logits": f"{name}.logits"}
    tensors = {f"{name}.logits": rows}
    if item["var"] is not None:
        entry["selected_rows"] = [int(layer.sum()) for layer in state.selection()]
        entry["visual_sinks"] = state.visual_sinks()
        entry["margins"] = state.margins.dictionary()
    extra = {"pixel_values": prompt.pixels, "features": prompt.features, "phi": torch.stack(state.phi),
             "selected": state.selection().to(torch.uint8)}
    for key in item["keep"]:
        entry[key] = f"{name}.{key}"
        tensors[f"{name}.{key}"] = extra[key]
    return entry, tensors


def record_half(model, half, case: dict, item: dict) -> tuple[dict, dict[str, torch.Tensor]]:
    """As record, and beside it the logits of PyTorch's own model in the case's dtype on the same tokens."""
    entry, tensors = record(model, case, item)
    style, mode = defaults(case, item)
    prompt = models.prepare(half, case, entry["prompt"], item["images"], mode)
    state = models.new_state(case, prompt, item["var"])
    logits = used_columns(case, models.teacher_forced(half, prompt, entry["tokens"], state))
    full = models.prepare(model, case, entry["prompt"], item["images"], mode)
    exact = models.new_state(case, full, item["var"])
    models.teacher_forced(model, full, entry["tokens"], exact)
    error = (logits.float() - tensors[entry["logits"]]).abs()
    free, _ = models.generate(half, prompt, models.new_state(case, prompt, item["var"]), item["tokens"])
    same = next((i for i, (a, b) in enumerate(zip(free, entry["tokens"])) if a != b), len(free))
    entry["half"] = {"logits": f"{entry['name']}.half_logits", "max_error": float(error.max()),
                     "rms_error": float(error.pow(2).mean().sqrt()), "greedy_tokens": free, "common_prefix": same,
                     "selection_flips": int((state.selection() != exact.selection()).sum())}
    tensors[entry["half"]["logits"]] = logits
    return entry, tensors
