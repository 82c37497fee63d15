"""Writes manifest.json and the safetensors files."""

import json
import re
import zlib

import torch
from safetensors.torch import save_file

from . import cases, generator, runs
from . import model as models
from .paths import ROOT

MANIFEST = ROOT / "manifest.json"
BAR = 2e-5


def dumps(value) -> str:
    """JSON with one line per object member, and lists of numbers or short strings on one line."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    return re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: "[" + re.sub(r"\s*\n\s*", " ", m.group(1)) + "]", text) + "\n"


def compact_tensors(case: dict) -> dict:
    """The tensor and override tables with one line per row."""
    return {**case, "tensors": [Row(t) for t in case["tensors"]], "overrides": [Row(o) for o in case["overrides"]]}


class Row(dict):
    """An object that prints on one line."""


def one_line_rows(value, rows: list[str]):
    """Replaces every Row by a placeholder string and collects its text."""
    if isinstance(value, Row):
        rows.append(json.dumps(value, ensure_ascii=False))
        return f"@row {len(rows) - 1}@"
    if isinstance(value, dict):
        return {k: one_line_rows(v, rows) for k, v in value.items()}
    if isinstance(value, list):
        out = [one_line_rows(v, rows) for v in value]
        return out
    return value


def write_manifest(manifest: dict) -> None:
    rows: list[str] = []
    plain = one_line_rows({**manifest, "cases": [compact_tensors(c) for c in manifest["cases"]]}, rows)
    text = dumps(plain).replace('", "@row', '",\n    "@row').replace('["@row', '[\n    "@row')
    text = re.sub(r'"@row (\d+)@"', lambda m: rows[int(m.group(1))], text)
    assert json.loads(text) == json.loads(json.dumps(manifest))
    MANIFEST.write_text(text, encoding="utf-8")


def read_manifest() -> dict:
    return json.loads(MANIFEST.read_text(encoding="utf-8")) if MANIFEST.exists() else {"cases": []}


def with_checksums(case: dict) -> dict:
    """The case with the CRC-32 of every tensor's little-endian bytes, overrides and rounding done."""
    made = models.rounded_weights(case)
    sums = {name: zlib.crc32(value.contiguous().view(torch.uint8).numpy().tobytes()) for name, value in made.items()}
    return {**case, "tensors": [{**t, "crc32": f"{sums[t['name']]:08x}"} for t in case["tensors"]]}


def make_case(name: str) -> dict:
    """Runs a case, writes its safetensors file, returns its manifest entry."""
    case = cases.build(name)
    model = models.build(case)
    entries, tensors = [], {}
    half = None if case["dtype"] == "float32" else models.build(case, case["dtype"])
    for item in runs.plan(name):
        entry, made = runs.record(model, case, item) if half is None else runs.record_half(model, half, case, item)
        entries.append(entry)
        tensors.update(made)
        print(name, item["name"], entry.get("margins"), entry.get("half"), flush=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, str(ROOT / f"{name}.safetensors"))
    (ROOT / f"{name}.safetensors").chmod(0o644)
    return {**with_checksums(case), "file": f"{name}.safetensors", "runs": entries}


def make(names: list[str]) -> None:
    """Makes the named cases, keeping the others of the manifest as they are."""
    old = {c["name"]: c for c in read_manifest()["cases"]}
    for name in names or list(cases.SHAPES):
        old[name] = make_case(name)
    manifest = {"format": 1, "logits_bar": BAR, "least": {**runs.LEAST, "share": list(runs.SHARE)},
                "generator_test": generator.test_vectors(), "cases": [old[n] for n in cases.SHAPES if n in old]}
    write_manifest(manifest)


def check_generate(name: str) -> None:
    """VAR off equals transformers' own generate, tokens and logits (a case of the original layout as its HF twin)."""
    case = cases.build(name)
    model = models.build(case)
    item = next(i for i in runs.plan(name) if i["name"] == "off")
    style, mode = runs.defaults(case, item)
    prompt = models.prepare(model, case, runs.prompt_text(style, item["question"], len(item["images"])), item["images"], mode)
    tokens, logits = models.generate(model, prompt, models.new_state(case, prompt, None), item["tokens"])
    out = model.generate(input_ids=torch.tensor([prompt.ids]), pixel_values=prompt.pixels, do_sample=False,
                         attention_mask=torch.ones(1, len(prompt.ids), dtype=torch.long), eos_token_id=None,
                         max_new_tokens=item["tokens"], output_logits=True, return_dict_in_generate=True)
    theirs = torch.cat(out.logits)
    assert out.sequences[0, len(prompt.ids):].tolist() == tokens
    difference = float((theirs - logits).abs().max() / logits.abs().max())
    assert difference < 5e-6, difference
    print(f"{name}: transformers' generate gives the same tokens; logits differ by {difference:.1e}")


def check(names: list[str]) -> None:
    for name in names or [n for n, shape in cases.SHAPES.items() if "dtype" not in shape]:
        check_generate(name)
