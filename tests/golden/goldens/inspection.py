"""inspection.safetensors: what attention does inside some runs of families/, from eager probabilities: rows, masses, contributions, knockouts."""

import json

import torch
from safetensors.torch import save_file

from . import families, family_cases, family_mistakes, family_models, var
from .paths import ROOT

ROW_STRIDE = 5  # of attention
RUNS = ["vila1_inside/on", "qwen_flat/two_images", "internvl_small/on"]


class Recorder(var.VarState):
    """Keeps the probabilities of every layer before and after redistribution."""

    def redistribute(self, layer, probs):
        out = super().redistribute(layer, probs)
        self.before = {**getattr(self, "before", {}), layer: probs[0].clone()}
        self.after = {**getattr(self, "after", {}), layer: out[0].clone()}
        return out


class Knockout(var.VarState):
    """Text rows lose what they give to some visual tokens: `positions` per layer, or the visual sinks."""

    positions: list[int] | None = None
    keep_mass = False

    def redistribute(self, layer, probs):
        if not self.layer_acts(layer):
            return probs
        gone = self.classes(layer)["VS"]
        if self.positions is not None:
            gone = torch.zeros_like(gone)
            gone[self.positions] = True
        rows = torch.ones(probs.shape[2], dtype=torch.bool)
        rows[: self.prompt_length] = ~self.visual
        left = probs * ~gone
        left = left if self.keep_mass else left / left.sum(-1, keepdim=True)
        return torch.where(rows[None, None, :, None], left, probs)


def value_norms(reference, prompt, tokens, state) -> torch.Tensor:
    """[layers, heads, visual tokens] norm of W_O v_j, from hooks on the projections."""
    found, out = {}, []
    hooks = [layer.self_attn.v_proj.register_forward_hook(lambda m, a, o, i=i: found.__setitem__(i, o[0])) for i, layer in enumerate(reference.llama.layers)]
    family_models.teacher_forced(reference, prompt, tokens, state)
    for hook in hooks:
        hook.remove()
    d = reference.case["_decoder"]
    visual = prompt.visual().nonzero().flatten()
    for i, layer in enumerate(reference.llama.layers):
        values = found[i].unflatten(-1, (d.kv_heads, d.head_dim))[visual]
        weight = layer.self_attn.o_proj.weight.unflatten(1, (d.heads, d.head_dim))
        out.append(torch.stack([(values[:, h // (d.heads // d.kv_heads)] @ weight[:, h].T).norm(dim=-1) for h in range(d.heads)]))
    return torch.stack(out)


def record(reference, entry) -> dict[str, torch.Tensor]:
    prompt = reference.prepare(entry["question"], entry["images"], entry["options"])
    params = family_mistakes.read_params(entry)
    state = family_models.new_state(reference, prompt, params, Recorder)
    norms = value_norms(reference, prompt, entry["tokens"], state)
    layers, length = len(reference.llama.layers), len(state.phi[0])
    visual = torch.zeros(length, dtype=torch.bool)
    visual[: len(prompt.ids)] = prompt.visual()
    rows = [i for i in range(int(visual.nonzero()[0]), length) if not visual[i]]
    before = torch.stack([state.before[i][:, rows] for i in range(layers)])  # [L, H, R, N]
    after = torch.stack([state.after[i][:, rows] for i in range(layers)])
    sinks = torch.stack([state.classes(i)["VS"] for i in range(layers)])[:, None, None]
    visual_sinks, others = (before * sinks).sum(-1), (before * (visual & ~sinks)).sum(-1)
    alpha = before[..., visual.nonzero().flatten()].mean(2)
    out = {"rows": torch.tensor(rows).float(), "attention": before.mean(1)[:, ::ROW_STRIDE], "redistributed": after.mean(1)[:, ::ROW_STRIDE], "visual_mass": visual_sinks + others,
           "visual_ratio": others / (visual_sinks + others), "contribution": alpha * norms, "head_attention": before[1, :, ::ROW_STRIDE], "phi": torch.stack(state.phi)}
    plain = [int(p) for p in prompt.visual().nonzero().flatten()[1::5]]
    for name, positions, keep in (("knockout", None, False), ("knockout_keep_mass", None, True), ("knockout_positions", plain, False)):
        made = family_models.new_state(reference, prompt, params, Knockout)
        made.positions, made.keep_mass = positions, keep
        logits = family_models.teacher_forced(reference, prompt, entry["tokens"], made)
        out[name] = torch.log_softmax(logits, -1).gather(1, torch.tensor(entry["tokens"])[:, None]).flatten()
    out["positions"] = torch.tensor(plain).float()
    return out


def make() -> None:
    manifest = {c["name"]: c for c in json.loads((families.FOLDER / "manifest.json").read_text(encoding="utf-8"))["cases"]}
    tensors = {}
    for place in RUNS:
        name, run = place.split("/")
        case = next(c for c in family_cases.all_cases() if c["name"] == name)
        reference = family_models.build({**case, "overrides": manifest[name]["overrides"]})
        entry = next(e for e in manifest[name]["runs"] if e["name"] == run)
        with torch.no_grad():
            tensors |= {f"{place}/{key}": value.contiguous() for key, value in record(reference, entry).items()}
    save_file(tensors, str(ROOT / "inspection.safetensors"))
    (ROOT / "inspection.safetensors").chmod(0o644)
