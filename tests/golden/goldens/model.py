"""A case as a transformers model: weights in, embeddings of a prompt, greedy generation with the state of VAR beside it."""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import DynamicCache, LlavaConfig, LlavaForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from . import generator, var
from .paths import ROOT, TOKENIZER

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def model_name(name: str) -> str:
    """A layout-A tensor name as the module tree of transformers 5.17 spells it."""
    name = name.replace("vision_tower.vision_model.", "model.vision_tower.")
    name = name.replace("multi_modal_projector.", "model.multi_modal_projector.")
    name = name.replace("language_model.model.", "model.language_model.")
    return name.replace("language_model.lm_head.", "lm_head.")


def rounded_weights(case: dict) -> dict[str, torch.Tensor]:
    """The checkpoint: float32 values rounded to the case's dtype (nearest even), under layout-A names."""
    return {name: torch.from_numpy(value).to(DTYPES[case["dtype"]]) for name, value in generator.weights(case).items()}


def build(case: dict, dtype: str = "float32") -> LlavaForConditionalGeneration:
    """The model with the checkpoint's values, computing in `dtype`; rotary frequencies stay float32 as in from_pretrained."""
    published = copy.deepcopy(case["config"])
    for part in (published, published["text_config"]):
        part.pop("torch_dtype", None)
        part["dtype"] = dtype
    config = LlavaConfig(**published)
    config._attn_implementation = "eager"
    default = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[dtype])
    try:
        model = LlavaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(default)
    weights = {model_name(name): value.to(DTYPES[dtype]) for name, value in rounded_weights(case).items()}
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.language_model.embed_tokens.weight"]
    model.load_state_dict(weights, strict=True)
    model.eval().requires_grad_(False)
    assert model.model.language_model.rotary_emb.inv_freq.dtype == torch.float32
    assert {p.dtype for p in model.parameters()} == {DTYPES[dtype]}
    assert model.config.text_config._attn_implementation == "eager"
    assert model.config.vision_config._attn_implementation == "eager"
    var.install(model.model.language_model)
    return model


def pixel_values(case: dict, files: list[str], mode: str) -> torch.Tensor:
    """[images, 3, S, S] float32 from transformers' Pillow processors: `crop` is CLIP's, `pad` LLaVA's."""
    options = {k: v for k, v in case["preprocessor_config"].items() if k != "image_processor_type"}
    processor = LlavaImageProcessorPil(do_pad=True, **options) if mode == "pad" else CLIPImageProcessorPil(**options)
    pictures = [Image.open(ROOT / file).convert("RGB") for file in files]
    return torch.from_numpy(np.stack(processor(pictures, return_tensors="np")["pixel_values"]))


@dataclass
class Prompt:
    """A prompt as fed: ids with one image token per visual position, spans of the images, embeddings."""

    ids: list[int]
    spans: list[list[int]]
    features: torch.Tensor | None  # [visual tokens, D]
    pixels: torch.Tensor | None

    def visual(self) -> torch.Tensor:
        mask = torch.zeros(len(self.ids), dtype=torch.bool)
        for begin, end in self.spans:
            mask[begin:end] = True
        return mask


def tokenize(case: dict, text: str, images: int) -> tuple[list[int], list[list[int]]]:
    """tokenizer.json's ids, each <image> repeated once per visual token; and the half-open spans of the images."""
    ids, spans = [], []
    count = case["visual_tokens_per_image"]
    for token in Tokenizer.from_file(str(TOKENIZER / "tokenizer.json")).encode(text).ids:
        if token == case["image_token_id"]:
            spans.append([len(ids), len(ids) + count])
        ids += [token] * (count if token == case["image_token_id"] else 1)
    assert len(spans) == images
    return ids, spans


def prepare(model, case: dict, text: str, images: list[str], mode: str) -> Prompt:
    ids, spans = tokenize(case, text, len(images))
    if not images:
        return Prompt(ids, spans, None, None)
    pixels = pixel_values(case, images, mode)
    out = model.get_image_features(pixel_values=pixels.to(model.dtype), vision_feature_layer=-2,
                                   vision_feature_select_strategy="default")
    return Prompt(ids, spans, torch.cat(list(out.pooler_output)), pixels)


def embed(model, prompt: Prompt) -> torch.Tensor:
    """[1, N, D]: token embeddings with the image features in place of the image tokens."""
    out = model.get_input_embeddings()(torch.tensor([prompt.ids])).clone()
    if prompt.features is not None:
        out[0, prompt.visual()] = prompt.features.to(out.dtype)
    return out


def new_state(case: dict, prompt: Prompt, params: var.VarParams | None, kind=var.VarState) -> var.VarState:
    layers = case["config"]["text_config"]["num_hidden_layers"]
    return kind(params, layers, case["sink_dims"], prompt.visual())


def forward(model, embeddings: torch.Tensor, cache) -> torch.Tensor:
    """Logits [T, vocab rows] of the given positions, which follow those in the cache."""
    past = cache.get_seq_length()
    positions = torch.arange(past, past + embeddings.shape[1])[None]
    hidden = model.model.language_model(inputs_embeds=embeddings, past_key_values=cache, use_cache=True,
                                        position_ids=positions).last_hidden_state
    return model.lm_head(hidden)[0]


@torch.no_grad()
def generate(model, prompt: Prompt, state: var.VarState, steps: int, stop=None) -> tuple[list[int], torch.Tensor]:
    """Greedy tokens and the logits [steps, rows] that chose them, one row per token. stop(state, row) ends a run early."""
    var.STATE = state
    cache, tokens, rows = DynamicCache(), [], []
    row = forward(model, embed(model, prompt), cache)[-1]
    for step in range(steps):
        rows.append(row)
        tokens.append(int(row.float().argmax()))
        if stop is not None and stop(state, row, tokens):
            break
        if step + 1 < steps:
            row = forward(model, model.get_input_embeddings()(torch.tensor([tokens[-1:]])), cache)[-1]
    var.STATE = None
    return tokens, torch.stack(rows)


@torch.no_grad()
def teacher_forced(model, prompt: Prompt, tokens: list[int], state: var.VarState) -> torch.Tensor:
    """Logits [len(tokens), rows] when prompt and given tokens pass in one piece: row t chose, or would choose, token t."""
    var.STATE = state
    embeddings = embed(model, prompt)
    more = model.get_input_embeddings()(torch.tensor([tokens[:-1]]).long())
    logits = forward(model, torch.cat([embeddings, more], 1), DynamicCache())
    var.STATE = None
    return logits[len(prompt.ids) - 1 :]
