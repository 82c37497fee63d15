"""The decoder in float32 with Visual Attention Redistribution written out, for evaluation.

Nothing here is fused or clever: probabilities are made, classed, summed and scaled as the equations say.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from model import SINK_DIM, TEXT, DemoModel, rotary_table
from tokenizer import EOS_ID, Tokenizer


@dataclass
class VarSettings:
    """p = 0 is VAR off."""

    tau: float = 20.0
    rho: float = 0.8
    p: float = 0.6
    min_visual_mass: float = 0.2
    first_layer: int = 1


@dataclass
class LayerStatistics:
    """What one layer showed; rows are the text rows behind the image."""

    phi: torch.Tensor  # [B, N]
    selected: torch.Tensor | None = None  # [B, H, rows], only in eligible layers
    text_sink_mass: torch.Tensor | None = None  # [B, H, rows]
    visual_sink_mass: torch.Tensor | None = None
    visual_mass: torch.Tensor | None = None  # without the sinks


@dataclass
class Statistics:
    layers: list[LayerStatistics] = field(default_factory=list)


def sink_scores(x: torch.Tensor) -> torch.Tensor:
    x = x.float()
    return x[..., SINK_DIM].abs() / torch.sqrt(x.square().mean(-1) + TEXT.eps)


def class_masses(alpha: torch.Tensor, sink: torch.Tensor, visual: torch.Tensor):
    """Mass of text sinks, visual sinks and visual non-sinks per row. alpha [B, H, Q, K], sink and visual [B, K]."""

    def mass(keys: torch.Tensor) -> torch.Tensor:
        return (alpha * keys[:, None, None, :]).sum(-1)

    return mass(sink & ~visual), mass(sink & visual), mass(~sink & visual)


def redistribute(alpha, sink, visual, text_rows, settings: VarSettings):
    """Eq. 3 and 4. Returns the new probabilities and which (head, row) pairs were selected."""
    text_sink, visual_sink, visual_rest = class_masses(alpha, sink, visual)
    length = alpha.shape[-1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    sees_sink = ((sink & visual)[:, None, :] & causal).any(-1)  # [B, Q], by position
    visual_mass = visual_rest + visual_sink
    ratio = visual_rest / visual_mass.clamp_min(torch.finfo(torch.float32).tiny)
    selected = (text_rows & sees_sink)[:, None, :] & (visual_rest > 0) & (visual_mass >= settings.min_visual_mass) & (ratio >= settings.rho)
    budget = settings.p * (visual_sink + text_sink)
    gain = 1 + budget / visual_rest.clamp_min(torch.finfo(torch.float32).tiny)
    factor = torch.ones_like(alpha)
    factor = torch.where(sink[:, None, None, :], 1 - settings.p, factor)
    factor = torch.where((visual & ~sink)[:, None, None, :], gain[..., None], factor)
    return torch.where(selected[..., None], alpha * factor, alpha), selected


def decode(model: DemoModel, x: torch.Tensor, visual: torch.Tensor, settings: VarSettings, statistics: Statistics | None = None) -> torch.Tensor:
    """Logits of the last row. x [B, N, D], visual [B, N]; sequences of one length, positions 0..N-1."""
    batch, length, _ = x.shape
    rotary = rotary_table(torch.arange(length).expand(batch, length))
    hidden = torch.full((length, length), float("-inf")).triu(1)
    text_rows = ~visual & (visual.long().cumsum(-1) > 0)
    layers = model.language_model.model.layers
    for index, layer in enumerate(layers):
        phi = sink_scores(x)
        sink = phi >= settings.tau
        attention = layer.self_attn
        q, k, v = attention.heads(layer.input_layernorm(x), rotary)
        alpha = torch.softmax(q @ k.transpose(-1, -2) * TEXT.head_dim**-0.5 + hidden, dim=-1)
        record = LayerStatistics(phi)
        if statistics is not None:
            rows = text_rows[0]
            record.text_sink_mass, record.visual_sink_mass, record.visual_mass = (m[:, :, rows] for m in class_masses(alpha, sink, visual))
            statistics.layers.append(record)
        if settings.first_layer <= index < len(layers) - 1:
            alpha, selected = redistribute(alpha, sink, visual, text_rows, settings)
            record.selected = selected[:, :, text_rows[0]]
        x = x + attention.o_proj((alpha @ v).transpose(1, 2).reshape(x.shape))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return model.language_model.lm_head(model.language_model.model.norm(x[:, -1]))


@torch.no_grad()
def answer(
    model: DemoModel, tokenizer: Tokenizer, visual_tokens: torch.Tensor, question: str, settings: VarSettings,
    statistics: Statistics | None = None, limit: int = 8,
) -> list[str]:
    """Greedy answers to one question about each of a batch of images. Statistics cover the prompt and every generated token but the last."""
    batch, images, _ = visual_tokens.shape
    start = len(tokenizer.prefix)
    ids = torch.tensor([tokenizer.prefix + [tokenizer.image_id] * images + tokenizer.question(question)]).expand(batch, -1)
    visual = torch.zeros(ids.shape, dtype=torch.bool)
    visual[:, start : start + images] = True
    finished = torch.zeros(batch, dtype=torch.bool)
    generated = []
    for _ in range(limit):
        if statistics is not None:
            statistics.layers.clear()
        x = model.embed(ids, visual_tokens, start)
        token = decode(model, x, visual, settings, statistics).argmax(-1)
        token = torch.where(finished, EOS_ID, token)
        generated.append(token)
        finished |= token == EOS_ID
        if finished.all():
            break
        ids = torch.cat([ids, token[:, None]], dim=1)
        visual = torch.cat([visual, torch.zeros(batch, 1, dtype=torch.bool)], dim=1)
    rows = torch.stack(generated, dim=1).tolist()
    return [tokenizer.decode(row[: row.index(EOS_ID)] if EOS_ID in row else row) for row in rows]
