"""Visual Attention Redistribution on eager attention probabilities, from the equations of the method, slow and plain.

The sections meant below: 1 symbols, 2 which rows are touched, 3 what happens to a selected row, 6 the authors' published code.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from transformers.models.llama import modeling_llama


@dataclass
class VarParams:
    """Section 1's parameters under libvar's names, and the two switches that act when phi is written (section 6)."""

    tau: float = 20.0
    rho: float = 0.8
    p: float = 0.6
    min_visual_mass: float = 0.2
    first_layer: int = 2
    include_last_layer: bool = False
    ratio_epsilon: float = 0.0
    sources: tuple[str, ...] = ("VS", "TS")
    targets: tuple[str, ...] = ("VN",)
    head_rule: str = "ratio"
    phi_epsilon: float | None = None  # None: the layer's own RMSNorm epsilon
    generated_sinks: bool = True

    @staticmethod
    def reference() -> "VarParams":
        """Section 6: the policy of the authors' published code."""
        return VarParams(tau=float(np.nextafter(np.float32(20), np.float32(np.inf))), rho=0.5, p=0.4, min_visual_mass=0.2,
                         first_layer=2, include_last_layer=True, ratio_epsilon=1e-6, phi_epsilon=1e-6,
                         generated_sinks=False)


@dataclass
class Margins:
    """The smallest distances from a threshold over a whole run, and how often the rule said yes."""

    ratio: float = float("inf")
    mass: float = float("inf")
    phi: float = float("inf")
    eligible: int = 0
    selected: int = 0

    def dictionary(self) -> dict:
        near = {"ratio": self.ratio, "mass": self.mass, "phi": self.phi}
        near = {name: None if value == float("inf") else value for name, value in near.items()}
        return {**near, "eligible_pairs": self.eligible,
                "selected_pairs": self.selected, "selected_share": self.selected / max(self.eligible, 1)}


@dataclass
class VarState:
    """One sequence: phi of every token and layer (kept beside K and V), which positions are visual, and what happened."""

    params: VarParams | None
    num_layers: int
    sink_dims: list[int]
    visual: torch.Tensor  # bool [prompt length]; generated tokens are text
    phi: list[torch.Tensor] = field(default_factory=list)
    selected: list[list[torch.Tensor]] = field(default_factory=list)  # per layer, pieces of bool [H, rows]
    margins: Margins = field(default_factory=Margins)

    def __post_init__(self) -> None:
        self.prompt_length = len(self.visual)
        self.phi = [torch.zeros(0) for _ in range(self.num_layers)]
        self.selected = [[] for _ in range(self.num_layers)]

    def layer_acts(self, layer: int) -> bool:
        """Rule 1 of section 2."""
        params = self.params
        return params is not None and layer >= params.first_layer and (layer < self.num_layers - 1 or params.include_last_layer)

    def store_phi(self, layer: int, hidden: torch.Tensor, eps: float) -> None:
        """phi_j = max over D_sink of |x_j[d]| / sqrt(mean(x_j^2) + eps), of the states that enter the layer: [1, N, D]."""
        x = hidden[0].float()
        params = self.params or VarParams()
        eps = eps if params.phi_epsilon is None else params.phi_epsilon
        phi = x[:, self.sink_dims].abs().amax(-1) / torch.sqrt(x.pow(2).mean(-1) + eps)
        if not params.generated_sinks:
            position = len(self.phi[layer]) + torch.arange(len(phi))
            phi = torch.where(position >= self.prompt_length, torch.zeros_like(phi), phi)
        self.phi[layer] = torch.cat([self.phi[layer], phi])
        if self.layer_acts(layer):
            self.margins.phi = min(self.margins.phi, float((phi - params.tau).abs().min()))

    def selection(self) -> torch.Tensor:
        """bool [layers, heads, rows fed]: which (head, row) pairs were changed."""
        return torch.stack([torch.cat(pieces, 1) for pieces in self.selected])

    def visual_sinks(self) -> list[list[int]]:
        """Per layer the key positions of the visual sinks."""
        return [torch.nonzero(self.classes(i)["VS"]).flatten().tolist() for i in range(self.num_layers)]

    def classes(self, layer: int) -> dict[str, torch.Tensor]:
        """bool [K] per class of keys: visual sinks, visual non-sinks, text sinks, other text."""
        phi = self.phi[layer]
        sink = phi >= torch.tensor(self.params.tau, dtype=torch.float32)
        visual = torch.zeros(len(phi), dtype=torch.bool)
        visual[: self.prompt_length] = self.visual
        return {"VS": visual & sink, "VN": visual & ~sink, "TS": ~visual & sink, "TN": ~visual & ~sink}

    def eligible_rows(self, keys: dict[str, torch.Tensor], first_row: int, rows: int) -> torch.Tensor:
        """Rules 2 and 3 of section 2: bool [Q]."""
        out = torch.zeros(rows, dtype=torch.bool)
        for i in range(rows):
            position = first_row + i
            is_text = position >= self.prompt_length or not bool(self.visual[position])
            out[i] = is_text and bool(keys["VS"][: position + 1].any())
        return out

    def redistribute(self, layer: int, probs: torch.Tensor) -> torch.Tensor:
        """probs float32 [1, H, Q, K] -> the same with the selected rows of this layer changed (sections 2 and 3)."""
        if not self.layer_acts(layer):
            self.selected[layer].append(torch.zeros(probs.shape[1:3], dtype=torch.bool))
            return probs
        params, keys = self.params, self.classes(layer)
        rows, count = probs.shape[-2], probs.shape[-1]
        eligible = self.eligible_rows(keys, count - rows, rows)
        mass = {name: probs[..., mask].sum(-1) for name, mask in keys.items()}  # [1, H, Q]
        visual_mass = mass["VN"] + mass["VS"]
        target_mass = sum(mass[name] for name in params.targets)
        source_mass = sum(mass[name] for name in params.sources)
        selected = eligible & (target_mass > 0)
        if params.head_rule == "ratio":
            selected = selected & self.ratio_rule(probs, keys, mass, visual_mass, eligible)
        elif params.head_rule == "none":
            selected = torch.zeros_like(selected)
        safe = torch.where(selected, target_mass, torch.ones_like(target_mass))
        grow = 1 + params.p * source_mass / safe
        factor = torch.ones_like(probs)
        for name in params.sources:
            factor[..., keys[name]] = 1 - params.p
        for name in params.targets:
            factor[..., keys[name]] = grow[..., None].expand(*grow.shape, int(keys[name].sum()))
        self.selected[layer].append(selected[0])
        self.margins.eligible += int(eligible.sum()) * probs.shape[1]
        self.margins.selected += int(selected.sum())
        return torch.where(selected[..., None], probs * factor, probs)

    def ratio_rule(self, probs, keys, mass, visual_mass, eligible) -> torch.Tensor:
        """Rule 4 of section 2: m_VN > 0, the visual mass is enough, and r >= rho: bool [1, H, Q]."""
        params = self.params
        rho = torch.tensor(params.rho, dtype=torch.float32)
        least = torch.tensor(params.min_visual_mass, dtype=torch.float32)
        if params.ratio_epsilon == 0:
            ratio = mass["VN"] / visual_mass
        else:
            count, rows = probs.shape[-1], probs.shape[-2]
            visual = (keys["VS"] | keys["VN"]).cumsum(0)[count - rows :]  # visual keys that each row can see
            ratio = 1 - mass["VS"] / (visual_mass + params.ratio_epsilon * visual)
        if bool(eligible.any()):
            near = ratio[..., eligible]
            self.margins.ratio = min(self.margins.ratio, float((near - rho).abs().nan_to_num(1.0).min()))
            self.margins.mass = min(self.margins.mass, float((visual_mass[..., eligible] - least).abs().min()))
        return (mass["VN"] > 0) & (visual_mass >= least) & (ratio >= rho)


STATE: VarState | None = None  # the sequence that the patched attention works on
EAGER = modeling_llama.eager_attention_forward


def attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """transformers' eager attention with the redistribution between softmax and the product with V."""
    key = modeling_llama.repeat_kv(key, module.num_key_value_groups)
    value = modeling_llama.repeat_kv(value, module.num_key_value_groups)
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    probs = torch.softmax(scores, dim=-1, dtype=torch.float32)
    if STATE is not None:
        probs = STATE.redistribute(module.layer_idx, probs)
    out = torch.matmul(probs.to(query.dtype), value)
    return out.transpose(1, 2).contiguous(), probs


def install(language_model) -> None:
    """Puts the attention above in place of the eager one, and stores phi of whatever enters a decoder layer."""
    modeling_llama.eager_attention_forward = attention

    def before(layer: int):
        def hook(module, args, kwargs):
            hidden = args[0] if args else kwargs["hidden_states"]
            if STATE is not None:
                STATE.store_phi(layer, hidden, module.input_layernorm.variance_epsilon)
        return hook

    for index, module in enumerate(language_model.layers):
        module.register_forward_pre_hook(before(index), with_kwargs=True)
