"""families/: what transformers answers with the models of family_cases.py, VAR on and off."""

import json

import torch
from safetensors.torch import save_file

from . import family_cases, family_models, runs, store, var
from .paths import ROOT

FOLDER = ROOT / "families"
LANDSCAPE, PORTRAIT, TINY, FLAT, WIDE, UNEVEN = (f"images/{n}.png" for n in ("landscape", "portrait", "tiny", "flat", "wide", "uneven"))
STEPS, HALF_STEPS = 64, 32
ROW_STRIDE = 4  # every fourth row of the logits is stored
PIXEL_STRIDE = 7  # and every seventh pixel value
UNIT_SHARE = (0.06, 0.35)  # visual tokens above the planted unit's threshold, of all pictures
LEAST_ABOVE = 2.0  # by which each picture but the tiny one gets above it
MOST_SINKS = 0.5  # of each picture but the tiny one

LEAST = {"ratio": 5e-5, "mass": 5e-5, "phi": 1e-3, "gap": 5e-4}  # as in runs.py; rounding moves a logit by 4e-6
SHARE = (0.05, 0.95)

ON, REFERENCE, ALWAYS = "on", "reference", "always"
PLAN = [("off", [LANDSCAPE], None, {}), ("on", [PORTRAIT], ON, {}), ("two_images", [TINY, LANDSCAPE], ON, {}), ("two_off", [WIDE, UNEVEN], None, {}),
        ("marked", [UNEVEN, TINY], ON, {}), ("reference", [UNEVEN], REFERENCE, {}), ("text_only", [], None, {})]
MORE = {"qwen_flat": ("options", [LANDSCAPE], None, {"min_pixels": 4000, "max_pixels": 8000}), "qwen_tied": ("options", [FLAT], None, {"max_pixels": 50000}),
        "internvl_small": ("options", [PORTRAIT], None, {"max_tiles": 2}), "internvl_large": ("options", [LANDSCAPE], None, {"max_tiles": 1})}
KEEP = {"off": ("pixels", "features"), "two_off": ("pixels", "features"), "on": ("phi",), "two_images": ("phi",)}
FORMS = ["What is {}?", "Is there {}?", "How many of {} are there?", "Describe {}.", "Where is {}?"]
QUESTIONS = [form.format(thing) for thing in ("it", "the cat", "a lamp", "one red boat", "my green cup", "the old man", "a sign") for form in FORMS]
MARKED = [form.format(thing) for thing in ("it", "the cat", "a lamp", "one red boat") for form in (
    "Look at <image> and then at <image>, where is {}?", "This is one: <image> This is two: <image> Which has {}?", "<image><image> Which shows {}?",
    "Before <image>after <image>now tell me of {}.")]


def plan(case: dict) -> list[tuple]:
    if case["dtype"] != "float32":
        return [("off", [LANDSCAPE], None, {}), ("always", [PORTRAIT], ALWAYS, {})]
    return PLAN + ([MORE[case["name"]]] if case["name"] in MORE else [])


def plant(case: dict) -> None:
    """Chooses the projector's unit and its threshold: the widest gap between the tokens above it and those below, over all pictures."""
    reference = family_models.build(case)
    found = []
    hook = reference.unit.register_forward_hook(lambda module, args, out: found.append((out - module.bias).flatten(0, -2)))
    for image in (LANDSCAPE, PORTRAIT, WIDE, UNEVEN, TINY):
        reference.prepare("", [image], {})
    hook.remove()
    values = torch.cat(found).float() * family_cases.UNIT_TIMES
    best = None
    for unit in range(min(values.shape[1], 200)):
        ordered = values[:, unit].sort(descending=True).values
        for count in range(int(UNIT_SHARE[0] * len(ordered)) + 1, int(UNIT_SHARE[1] * len(ordered))):
            threshold = float(ordered[count - 1] + ordered[count]) / 2
            above = [float((f[:, unit] * family_cases.UNIT_TIMES > threshold).float().mean()) for f in found]
            gap = float(ordered[count - 1] - ordered[count])
            clear = all(float(f[:, unit].max()) * family_cases.UNIT_TIMES >= threshold + LEAST_ABOVE for f in found[:-1])
            if clear and all(0 < share <= MOST_SINKS for share in above[:-1]) and (best is None or gap > best[0]):
                best = (gap, unit, threshold, count / len(ordered))
    gap, unit, threshold, share = best
    case["overrides"] = case["overrides"] + case["_planting"].unit(case["_decoder"], unit, round(-threshold, 3))
    print(f"{case['name']}: unit {unit}, gap {gap:.2f}, {share:.2f} of the visual tokens", flush=True)


def settings(kind: str | None):
    """Parameters to try until a run keeps clear of every threshold."""
    if kind == ALWAYS:
        yield var.VarParams(rho=0.0, min_visual_mass=0.0, first_layer=1)
    elif kind == REFERENCE:
        yield var.VarParams.reference()
    elif kind is None:
        yield None
    else:
        for rho in (0.8, 0.7, 0.6, 0.5, 0.9):
            for mass in (0.1, 0.05, 0.2):
                yield var.VarParams(rho=rho, min_visual_mass=mass, first_layer=1)


def good(state, logits, kind) -> bool:
    margins = state.margins
    if float(runs.gaps(logits).min()) < LEAST["gap"] or margins.phi < LEAST["phi"]:
        return False
    if kind is None or kind == ALWAYS:
        return True
    clear = margins.ratio >= LEAST["ratio"] and margins.mass >= LEAST["mass"]
    least, most = (0.02, 0.98) if kind == REFERENCE else SHARE
    return clear and least <= margins.selected / max(margins.eligible, 1) <= most


def stored_rows(logits: torch.Tensor) -> torch.Tensor:
    return logits[::ROW_STRIDE].float().contiguous()


def search(reference, name, images, kind, options, steps):
    """The first question and settings that keep clear of every threshold."""
    for question in MARKED if name == "marked" else QUESTIONS:
        prompt = reference.prepare(question, images, options)
        for params in settings(kind):
            state = family_models.new_state(reference, prompt, params)
            near = lambda row: float(runs.gaps(row[None])) < LEAST["gap"]  # noqa: E731
            tokens, logits = family_models.generate(reference, prompt, state, steps, near)
            if len(tokens) == steps and good(state, logits, kind) and len(set(tokens)) >= steps // 4:
                return question, params, prompt, state, tokens, logits
    raise RuntimeError(f"{reference.case['name']}/{name}: no settings keep clear of the thresholds")


def record(reference, half, name, images, kind, options) -> tuple[dict, dict[str, torch.Tensor]]:
    steps = HALF_STEPS if half else STEPS
    question, params, prompt, state, tokens, logits = search(reference, name, images, kind, options, steps)
    again_state = family_models.new_state(reference, prompt, params)
    again = family_models.teacher_forced(reference, prompt, tokens, again_state)
    noise = float((again - logits).abs().max() / logits.abs().max())
    assert noise < 5e-6, (reference.case["name"], name, noise)
    key = f"{reference.case['name']}.{name}"
    entry = {"name": name, "question": question, "images": images, "options": options, "var": runs.var_dictionary(params), "max_new_tokens": steps,
             "prompt_tokens": prompt.ids, "visual_spans": prompt.spans, "positions": prompt.positions.reshape(-1, len(prompt.ids)).tolist(),
             "tokens": tokens, "text": reference.decode(tokens), "noise": noise, "logits": key + ".logits"}
    tensors = {entry["logits"]: stored_rows(again if half else logits)}
    if params is not None:
        entry |= {"selected_rows": [int(s.sum()) for s in state.selection()], "visual_sinks": state.visual_sinks(), "margins": state.margins.dictionary()}
    if half:
        own = half.prepare(question, images, options)
        made = family_models.teacher_forced(half, own, tokens, family_models.new_state(half, own, params))
        error = (stored_rows(made) - stored_rows(again)).abs()
        entry["half"] = {"max_error": float(error.max()), "rms_error": float(error.pow(2).mean().sqrt())}
        return entry, tensors
    extra = {"phi": lambda: torch.stack(state.phi), "features": lambda: prompt.features,
             "pixels": lambda: prompt.pixels.values.flatten()[::PIXEL_STRIDE]}
    for what in KEEP.get(name, ()):
        entry[what] = f"{key}.{what}"
        tensors[entry[what]] = extra[what]().contiguous()
    return entry, tensors


def made_cases(names: list[str] = ()) -> list[dict]:
    """Cases with their planted units: as the manifest has them, where it does."""
    return [case for case in family_cases.all_cases() if not names or case["name"] in names]


def make(names: list[str] = ()) -> None:
    FOLDER.mkdir(exist_ok=True)
    cases, tensors = [], {}
    for case in made_cases(names):
        plant(case)
        reference = family_models.build(case)
        half = family_models.build(case, case["dtype"]) if case["dtype"] != "float32" else None
        entries = []
        for item in plan(case):
            entry, kept = record(reference, half, *item)
            entries.append(entry)
            tensors |= kept
            print(case["name"], entry["name"], entry.get("margins", ""), entry.get("half", ""), f"{entry['noise']:.1e}", flush=True)
        cases.append({**store.with_checksums(family_cases.published(case)), "runs": entries})
    if names:
        return
    save_file(tensors, str(FOLDER / "families.safetensors"))
    (FOLDER / "families.safetensors").chmod(0o644)
    manifest = {"logits_bar": store.BAR, "least": {**LEAST, "share": list(SHARE)}, "row_stride": ROW_STRIDE, "pixel_stride": PIXEL_STRIDE, "cases": cases}
    (FOLDER / "manifest.json").write_text(json.dumps(manifest, ensure_ascii=False).replace('{"name": ', '\n{"name": ') + "\n", encoding="utf-8")
