"""A small LLaVA in plain PyTorch: CLIP tower, two-layer projector, Llama decoder.

Module names are the tensor names of the published llava-hf checkpoints, so the state dict is the checkpoint. One dimension of the decoder's residual stream,
`SINK_DIM`, is set aside: only the BOS embedding and a pair of projector units write it, only the keys read it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from scenes import COLORS, GRID, PATCH, PLACES, SHAPES
from tokenizer import BOS_ID, VOCAB_SIZE

SINK_DIM = 137
SINK_VALUE = 32000.0  # in training; export scales the whole residual stream by EXPORT_SCALE
EXPORT_SCALE = 1 / 8  # a power of two: exact in bfloat16, and RMSNorm makes the network indifferent to it
SINK_UNITS = (77, 78)  # the projector units that fire on sink patches; two, so that their difference saturates
BOS_DIM = 401  # a mark that only BOS has, small beside its sink value: heads can then choose BOS over the visual sinks
BOS_MARK = 0.15 * SINK_VALUE
CONSTANT_DIM = 300  # every token starts with the same value here, which gives queries something constant to read
CONSTANT_VALUE = 2.0
SINK_KEY = 8.0  # length of a sink token's key along the slowest rotary pair, and of BOS's along the one before
# The attention that some heads keep on the sinks, as heads of large models do. Training holds these least shares in the text rows of the two layers below.
PARKING_HEADS, PARKING_SHARE = slice(0, 2), 0.4  # on the visual sinks
BOS_HEADS, BOS_SHARE = slice(4, 8), 0.35  # on BOS
MIXED_HEADS, MIXED_SHARE = slice(4, 6), 0.25  # on the rest of the image, besides
# Training shows some heads where to look: in the first of these layers from a question's word to the objects it fits, in the second from the end of the
# prompt to that word.
LOOKING_LAYER, RECALLING_LAYER = 1, 2
LOOKING_HEADS = (2, 3)
AUXILIARY = ("probe.", "found.")  # modules that only training has


@dataclass(frozen=True)
class VisionSize:
    hidden: int = 192
    layers: int = 4  # the features come out before the last
    heads: int = 3
    intermediate: int = 768
    eps: float = 1e-5


@dataclass(frozen=True)
class TextSize:
    hidden: int = 512
    layers: int = 4
    heads: int = 8
    intermediate: int = 512
    eps: float = 1e-5
    rope_theta: float = 10000.0

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


VISION = VisionSize()
TEXT = TextSize()
SLOW_PAIR = TEXT.head_dim // 2 - 1  # first member of the slowest rotary pair


class ClipAttention(nn.Module):
    def __init__(self):
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, nn.Linear(VISION.hidden, VISION.hidden))

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = (p(x).view(batch, length, VISION.heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        out = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(out.transpose(1, 2).reshape(batch, length, width))


class ClipMlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(VISION.hidden, VISION.intermediate)
        self.fc2 = nn.Linear(VISION.intermediate, VISION.hidden)

    def forward(self, x):
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))


class ClipLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn = ClipAttention()
        self.layer_norm1 = nn.LayerNorm(VISION.hidden, eps=VISION.eps)
        self.mlp = ClipMlp()
        self.layer_norm2 = nn.LayerNorm(VISION.hidden, eps=VISION.eps)

    def forward(self, x):
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class ClipEmbeddings(nn.Module):
    def __init__(self):
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(VISION.hidden) * 0.5)
        self.patch_embedding = nn.Conv2d(3, VISION.hidden, PATCH, stride=PATCH, bias=False)
        self.position_embedding = nn.Embedding(GRID * GRID + 1, VISION.hidden)
        nn.init.normal_(self.position_embedding.weight, std=0.5)

    def forward(self, pixels):
        # Equal to the convolution, and faster for patches that do not overlap.
        batch = pixels.shape[0]
        patches = pixels.view(batch, 3, GRID, PATCH, GRID, PATCH).permute(0, 2, 4, 1, 3, 5).reshape(batch, GRID * GRID, -1)
        patches = F.linear(patches, self.patch_embedding.weight.flatten(1)).to(pixels.dtype)
        cls = self.class_embedding.expand(batch, 1, -1)
        return torch.cat([cls, patches], dim=1) + self.position_embedding.weight


class ClipEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(ClipLayer() for _ in range(VISION.layers))


class ClipModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embeddings = ClipEmbeddings()
        self.pre_layrnorm = nn.LayerNorm(VISION.hidden, eps=VISION.eps)
        self.encoder = ClipEncoder()
        self.post_layernorm = nn.LayerNorm(VISION.hidden, eps=VISION.eps)

    def forward(self, pixels):
        """Patch features of the last layer but one, without the class token."""
        x = self.pre_layrnorm(self.embeddings(pixels))
        for layer in self.encoder.layers[:-1]:
            x = layer(x)
        return x[:, 1:]


class VisionTower(nn.Module):
    def __init__(self):
        super().__init__()
        self.vision_model = ClipModel()

    def forward(self, pixels):
        return self.vision_model(pixels)


class Projector(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear_1 = nn.Linear(VISION.hidden, TEXT.hidden)
        self.linear_2 = nn.Linear(TEXT.hidden, TEXT.hidden)

    def forward(self, features):
        """Visual tokens, and the pre-activation of the sink unit."""
        hidden = self.linear_1(features)
        return self.linear_2(F.gelu(hidden)), hidden[..., SINK_UNITS[0]]


class RmsNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(TEXT.hidden))

    def forward(self, x):
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + TEXT.eps) * self.weight


def rotary_table(positions):
    half = TEXT.head_dim // 2
    frequencies = TEXT.rope_theta ** (-torch.arange(half, dtype=torch.float32) / half)
    angles = positions.float()[..., None] * frequencies
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class Guide:
    """Reads one layer's attention for the auxiliary losses.

    seen: the looking heads' probabilities in the rows of `pairs` (image, row), [W, heads, N].
    shortfall: how far, in logarithms, the attention on sinks and image is below the least shares; mean over the text rows.
    """

    def __init__(self, pairs, visual_sinks, visual_rest, text_rows):
        self.pairs, self.text_rows = pairs, text_rows
        self.visual_sinks, self.visual_rest = (keys.float()[:, None, None, :] for keys in (visual_sinks, visual_rest))

    def read(self, alpha) -> None:
        self.seen = torch.stack([alpha[self.pairs[:, 0], head, self.pairs[:, 1]] for head in LOOKING_HEADS], dim=1)
        shares = (
            ((alpha[:, PARKING_HEADS] * self.visual_sinks).sum(-1), PARKING_SHARE),
            (alpha[:, BOS_HEADS, :, 0], BOS_SHARE),
            ((alpha[:, MIXED_HEADS] * self.visual_rest).sum(-1), MIXED_SHARE),
        )
        # Logarithms: a share near zero still gets a gradient.
        short = sum(F.relu(math.log(least) - (share + 1e-6).log()).mean(1) for share, least in shares)
        self.shortfall = short[self.text_rows].mean()


class LlamaAttention(nn.Module):
    def __init__(self):
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, nn.Linear(TEXT.hidden, TEXT.hidden, bias=False))

    def heads(self, x, rotary):
        batch, length, _ = x.shape
        q, k, v = (p(x).view(batch, length, TEXT.heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        cos, sin = (t.to(q.dtype) for t in rotary)
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def forward(self, x, rotary, mask, guide=None):
        q, k, v = self.heads(x, rotary)
        # Plain matrix products: several times faster on a CPU than the fused op with a mask, forward and backward together.
        scores = torch.matmul(q, k.transpose(-1, -2)) * TEXT.head_dim**-0.5 + mask.to(q.dtype)
        alpha = scores.softmax(-1, dtype=torch.float32)
        if guide is not None:
            guide.read(alpha)
        out = torch.matmul(alpha.to(v.dtype), v)
        return out.transpose(1, 2).reshape(x.shape)


class LlamaMlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_proj = nn.Linear(TEXT.hidden, TEXT.intermediate, bias=False)
        self.up_proj = nn.Linear(TEXT.hidden, TEXT.intermediate, bias=False)
        self.down_proj = nn.Linear(TEXT.intermediate, TEXT.hidden, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LlamaLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn = LlamaAttention()
        self.mlp = LlamaMlp()
        self.input_layernorm = RmsNorm()
        self.post_attention_layernorm = RmsNorm()

    def forward(self, x, rotary, mask, rows=None, guide=None):
        """`rows` (into the flattened batch) limits the output to those rows: the last layer needs no others."""
        attended = self.self_attn(self.input_layernorm(x), rotary, mask, guide)
        if rows is not None:
            x, attended = x.flatten(0, 1)[rows], attended.flatten(0, 1)[rows]
        x = x + self.self_attn.o_proj(attended)
        return x + self.mlp(self.post_attention_layernorm(x))


class LlamaModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCAB_SIZE, TEXT.hidden)
        self.layers = nn.ModuleList(LlamaLayer() for _ in range(TEXT.layers))
        self.norm = RmsNorm()


class LanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = LlamaModel()
        self.lm_head = nn.Linear(TEXT.hidden, VOCAB_SIZE, bias=False)


class PatchProbe(nn.Module):
    """Auxiliary training targets on the tower's features. Not part of the checkpoint."""

    def __init__(self):
        super().__init__()
        self.shape = nn.Linear(VISION.hidden, len(SHAPES) + 1)
        self.color = nn.Linear(VISION.hidden, len(COLORS) + 1)
        self.position = nn.Linear(VISION.hidden, GRID * GRID)


class FoundProbe(nn.Module):
    """Auxiliary targets on the hidden state of a question's word once it has looked: what was found there, the last class being nothing."""

    def __init__(self):
        super().__init__()
        self.shape = nn.Linear(TEXT.hidden, len(SHAPES) + 1)
        self.color = nn.Linear(TEXT.hidden, len(COLORS) + 1)
        self.place = nn.Linear(TEXT.hidden, len(PLACES) + 1)

    def forward(self, x):
        return self.shape(x), self.color(x), self.place(x)


class DemoModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.vision_tower = VisionTower()
        self.multi_modal_projector = Projector()
        self.language_model = LanguageModel()
        self.probe = PatchProbe()
        self.found = FoundProbe()
        self.planted = False  # False: the labels say which patches carry the sink value; True: the projector's own units do
        initialise(self)
        hold_sink_entries(self)

    def visual_tokens(self, pixels, sink_labels=None):
        features = self.vision_tower(pixels)
        tokens, unit = self.multi_modal_projector(features)
        tokens = tokens.float()
        if not self.planted and sink_labels is not None:
            tokens = tokens.index_put((*sink_labels.nonzero(as_tuple=True), torch.tensor(SINK_DIM)), torch.tensor(SINK_VALUE))
        return tokens, features, unit.float()

    def embed(self, ids, visual, image_start: int):
        x = self.language_model.model.embed_tokens(ids)
        return torch.cat([x[:, :image_start], visual, x[:, image_start + visual.shape[1]:]], dim=1)

    def decode(self, x, positions, mask, rows, guides):
        """Logits of `rows`, and what the words have found. `guides` (layer: Guide) read the attention on the way."""
        rotary = rotary_table(positions)
        layers = self.language_model.model.layers
        for index, layer in enumerate(layers[:-1]):
            x = layer(x, rotary, mask, guide=guides.get(index))
            if index == LOOKING_LAYER:
                words = guides[index].pairs
                found = self.found(layers[index + 1].input_layernorm(x[words[:, 0], words[:, 1]]))
        x = layers[-1](x, rotary, mask, rows)
        return self.language_model.lm_head(self.language_model.model.norm(x)), found

    def checkpoint(self) -> dict[str, torch.Tensor]:
        return {k: v for k, v in self.state_dict().items() if not k.startswith(AUXILIARY)}


def initialise(model: DemoModel) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    language = model.language_model
    nn.init.normal_(language.model.embed_tokens.weight, std=0.5)
    nn.init.normal_(language.lm_head.weight, std=0.01)
    for layer in language.model.layers:
        nn.init.normal_(layer.self_attn.o_proj.weight, std=0.01)
        nn.init.normal_(layer.mlp.down_proj.weight, std=0.01)
    with torch.no_grad():
        language.model.embed_tokens.weight[:, CONSTANT_DIM] = CONSTANT_VALUE
        projector = model.multi_modal_projector
        projector.linear_2.weight[CONSTANT_DIM] = 0
        projector.linear_2.bias[CONSTANT_DIM] = CONSTANT_VALUE
        for layer in language.model.layers[1:]:
            for head in range(PARKING_HEADS.start, PARKING_HEADS.stop):
                layer.self_attn.q_proj.weight[head * TEXT.head_dim + SLOW_PAIR, CONSTANT_DIM] = 1.5


HELD = (SINK_DIM, BOS_DIM)


@torch.no_grad()
def hold_sink_entries(model: DemoModel) -> None:
    """Puts every entry that touches the two set-aside dimensions back to its fixed value. Called after each optimiser step."""
    language = model.language_model.model
    language.embed_tokens.weight[:, HELD] = 0
    language.embed_tokens.weight[BOS_ID, SINK_DIM] = SINK_VALUE
    language.embed_tokens.weight[BOS_ID, BOS_DIM] = BOS_MARK
    language.norm.weight[list(HELD)] = 1
    model.language_model.lm_head.weight[:, HELD] = 0
    normed = TEXT.hidden**0.5  # what RMSNorm makes of a massive value
    for layer in language.layers:
        layer.input_layernorm.weight[list(HELD)] = 1
        layer.post_attention_layernorm.weight[list(HELD)] = 1
        attention, mlp = layer.self_attn, layer.mlp
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            linear.weight[:, HELD] = 0
        attention.k_proj.weight[SLOW_PAIR :: TEXT.head_dim, SINK_DIM] = SINK_KEY / normed
        attention.k_proj.weight[SLOW_PAIR - 1 :: TEXT.head_dim, BOS_DIM] = SINK_KEY / (normed * BOS_MARK / SINK_VALUE)
        attention.o_proj.weight[list(HELD)] = 0
        mlp.down_proj.weight[list(HELD)] = 0
    projector = model.multi_modal_projector
    projector.linear_2.weight[:, SINK_UNITS] = 0
    projector.linear_2.weight[list(HELD)] = 0
    projector.linear_2.bias[list(HELD)] = 0


@torch.no_grad()
def drop_sink_gradients(model: DemoModel) -> None:
    """The inputs of held entries are massive: their gradients must not enter the norm that clipping looks at."""
    held = list(HELD)
    for layer in model.language_model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            linear.weight.grad[:, held] = 0
        attention.o_proj.weight.grad[held] = 0
        mlp.down_proj.weight.grad[held] = 0
        layer.input_layernorm.weight.grad[held] = 0
        layer.post_attention_layernorm.weight.grad[held] = 0
    model.language_model.model.embed_tokens.weight.grad[:, held] = 0


@torch.no_grad()
def plant_units(model: DemoModel, steepness: float = 32.0, half_width: float = 0.25) -> None:
    """Hands the sink value over from the labels to the projector: a difference of two GELU units, zero below -half_width and constant above half_width.

    Last step before a checkpoint is written; it also scales the residual stream to an ordinary size.
    """
    language, projector = model.language_model.model, model.multi_modal_projector
    for layer in language.layers:
        layer.self_attn.o_proj.weight *= EXPORT_SCALE
        layer.mlp.down_proj.weight *= EXPORT_SCALE
    for tensor in (language.embed_tokens.weight, projector.linear_2.weight, projector.linear_2.bias):
        tensor *= EXPORT_SCALE
    first, second = projector.linear_1.weight[SINK_UNITS[0]].clone(), projector.linear_1.bias[SINK_UNITS[0]].clone()
    outgoing = SINK_VALUE * EXPORT_SCALE / (2 * steepness * half_width)
    for unit, sign in zip(SINK_UNITS, (1, -1)):
        projector.linear_1.weight[unit] = steepness * first
        projector.linear_1.bias[unit] = steepness * (second + sign * half_width)
        projector.linear_2.weight[SINK_DIM, unit] = sign * outgoing
    model.planted = True
