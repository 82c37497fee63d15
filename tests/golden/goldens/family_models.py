"""The models of family_cases.py as transformers computes them: pictures and a question in, embeddings and positions out, greedy generation beside VAR's state.

transformers has no class for InternVLChatModel and VILA. The first is un-fused into its own InternVL class; of the second, decoder and towers are
transformers' classes, and merge and projector are written here from their description.
"""

import copy
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import sentencepiece
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import (CLIPVisionConfig, CLIPVisionModel, DynamicCache, InternVLConfig, InternVLForConditionalGeneration, LlamaConfig, LlamaForCausalLM,
                          Qwen2VLConfig, Qwen2VLForConditionalGeneration, SiglipVisionConfig, SiglipVisionModel)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llama import modeling_llama
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.qwen2_vl import modeling_qwen2_vl
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from . import bpe, runs, var
from .family_cases import INTERNLM2_NAMES, PROJECTOR_NAMES, VIT_NAMES
from .model import DTYPES, rounded_weights
from .paths import ROOT, TOKENIZER

INTERNVL_SYSTEM = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"


@dataclass
class Pixels:
    """What a processor makes of some pictures. parts: per picture the patches or tiles that belong to it."""

    values: torch.Tensor
    parts: list[int]
    grids: torch.Tensor | None = None  # Qwen2-VL


@dataclass
class Prompt:
    ids: list[int]
    spans: list[list[int]]
    pixels: Pixels | None
    features: torch.Tensor | None  # [visual tokens, D]
    positions: torch.Tensor  # [1, N] or [3, 1, N]

    def visual(self) -> torch.Tensor:
        mask = torch.zeros(len(self.ids), dtype=torch.bool)
        for begin, end in self.spans:
            mask[begin:end] = True
        return mask


@contextmanager
def default_dtype(dtype: torch.dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Reference:
    """One model in one dtype. Subclasses set llama, lm_head, image (the token's id), unit (the projector's planted layer)."""

    attention_of = modeling_llama

    def __init__(self, case: dict, dtype: str = "float32"):
        self.case, self.files, self.dtype = case, case["files"], DTYPES[dtype]
        with default_dtype(self.dtype):
            self.build({n: v.to(self.dtype) for n, v in rounded_weights(case).items()})
        for module in self.modules():
            module.eval().requires_grad_(False)
            assert all(b.dtype == torch.float32 for n, b in module.named_buffers() if "inv_freq" in n)
        self.attention_of.eager_attention_forward = var.attention
        var.install(self.llama)

    def embed(self, ids: list[int]) -> torch.Tensor:
        return self.llama.embed_tokens(torch.tensor([ids]).clamp(min=0)).clone()

    def positions(self, ids: list[int], pixels: Pixels | None) -> torch.Tensor:
        return torch.arange(len(ids)).expand(1, -1)

    def after(self, positions: torch.Tensor) -> int:
        """Position of the first generated token."""
        return int(positions.max()) + 1

    first: list[int] = []  # in front of every prompt

    def prepare(self, question: str, images: list[str], options: dict) -> Prompt:
        pixels = self.pixels([Image.open(ROOT / i).convert("RGB") for i in images], options) if images else None
        ids, spans = list(self.first), []
        for i, part in enumerate(self.text(question, len(images)).split("<image>")):
            if i:
                count = self.visual_tokens(pixels, i - 1)
                spans.append([len(ids), len(ids) + count])
                ids += [self.image] * count
            ids += self.encode(part)
        assert len(spans) == len(images)
        return Prompt(ids, spans, pixels, self.features(pixels) if images else None, self.positions(ids, pixels))


def marked(question: str, images: int, mark: str, each: str = "<image>") -> str:
    """`mark` in front of a question for each image, or `each` where the question has <image> itself."""
    return question.replace("<image>", each) if "<image>" in question else mark * images + question


class Qwen2Vl(Reference):
    attention_of = modeling_qwen2_vl

    def build(self, weights):
        config = {k: v for k, v in self.files["config.json"].items() if k not in ("torch_dtype", "dtype")}
        config = Qwen2VLConfig(**copy.deepcopy(config))
        config._attn_implementation = "eager"
        self.model = Qwen2VLForConditionalGeneration(config)
        if not any(n.startswith("model.visual.") for n in weights):
            weights = {("model." + n if n.startswith("visual.") else n.replace("model.", "model.language_model.", 1)): v for n, v in weights.items()}
        if config.tie_word_embeddings:
            weights["lm_head.weight"] = weights["model.language_model.embed_tokens.weight"]
        self.model.load_state_dict(weights, strict=True)
        self.llama, self.lm_head, self.tower = self.model.model.language_model, self.model.lm_head, self.model.model.visual
        self.unit, self.image = self.tower.merger.mlp[0], config.image_token_id
        self.tokenizer = Tokenizer.from_file(str(ROOT / "bpe/qwen2/tokenizer.json"))

    def modules(self):
        return [self.model]

    def text(self, question, images):
        image = "<|vision_start|><image><|vision_end|>"
        return ("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n" + marked(question, images, image, image)
                + "<|im_end|>\n<|im_start|>assistant\n")

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids):
        return self.tokenizer.decode(ids)

    def pixels(self, pictures, options):
        processor = self.files["preprocessor_config.json"]
        least, most = options.get("min_pixels", processor["min_pixels"]), options.get("max_pixels", processor["max_pixels"])
        made = Qwen2VLImageProcessorPil(min_pixels=least, max_pixels=most, size={"shortest_edge": least, "longest_edge": most},
                                        image_mean=processor["image_mean"], image_std=processor["image_std"])
        batch = made(pictures, return_tensors="pt")
        return Pixels(batch["pixel_values"], [int(g.prod()) for g in batch["image_grid_thw"]], batch["image_grid_thw"])

    def visual_tokens(self, pixels, image):
        return pixels.parts[image] // 4

    def features(self, pixels):
        return torch.cat(list(self.model.get_image_features(pixels.values.to(self.dtype), pixels.grids).pooler_output))

    def positions(self, ids, pixels):
        if pixels is None:
            return torch.arange(len(ids)).expand(3, 1, -1)
        x = torch.tensor([ids])
        return self.model.model.get_rope_index(x, mm_token_type_ids=(x == self.image).int(), image_grid_thw=pixels.grids)[0]


class InternVl(Reference):
    first = [1]

    def build(self, weights):
        config = self.files["config.json"]
        self.native = config["model_type"] == "internvl"
        vision, text = config["vision_config"], config["text_config" if self.native else "llm_config"]
        text = {k: v for k, v in text.items() if k not in ("architectures", "bias", "rope_scaling", "model_type")}
        vision = {k: v for k, v in vision.items() if k not in ("qkv_bias", "qk_normalization", "model_type")}
        made = InternVLConfig(vision_config={**vision, "attention_bias": True, "use_mean_pooling": True, "model_type": "internvl_vision"},
                              text_config=LlamaConfig(**text).to_dict(), image_token_id=444, downsample_ratio=0.5, tie_word_embeddings=False)
        made._attn_implementation = "eager"
        self.model, self.image = InternVLForConditionalGeneration(made), 444
        self.model.load_state_dict(self.in_memory(weights), strict=True)
        self.llama, self.lm_head = self.model.model.language_model, self.model.lm_head
        self.tower, self.projector = self.model.model.vision_tower, self.model.model.multi_modal_projector
        self.unit = self.projector.linear_1
        self.pieces = sentencepiece.SentencePieceProcessor(str(ROOT / "bpe/internlm2/tokenizer.model"))
        self.encode = bpe.split_encode(self.pieces, {"<unk>": 0, "<s>": 1, "</s>": 2, **{t: 440 + i for i, t in enumerate(bpe.INTERNLM2_SPECIAL)}})
        side = vision["image_size"] if isinstance(vision["image_size"], int) else vision["image_size"][0]
        self.side, self.tile = side, (side // 28) ** 2

    def modules(self):
        return [self.model]

    def split_wqkv(self, value: torch.Tensor) -> dict[str, torch.Tensor]:
        """Rows: key head; slot (its queries, key, value); dimension."""
        d = self.case["_decoder"]
        group = d.heads // d.kv_heads
        slots = value.reshape(d.kv_heads, group + 2, d.head_dim, -1)
        return {p: rows.reshape(-1, value.shape[1]) for p, rows in (("q", slots[:, :group]), ("k", slots[:, group]), ("v", slots[:, group + 1]))}

    def in_memory(self, weights):
        """Published tensors, or those of a native checkpoint, under the names of transformers' modules."""
        out = {}
        for name, value in weights.items():
            if not self.native:
                for old, new in (("language_model.output.", "language_model.lm_head."), *((b, a) for a, b in INTERNLM2_NAMES[:-1]), *PROJECTOR_NAMES):
                    name = name.replace(old, new)
                if name.startswith("vision_model."):
                    for old, new in VIT_NAMES:
                        name = name.replace(old, new)
            name = name.replace("language_model.lm_head.", "lm_head.").replace("language_model.model.", "model.language_model.")
            if name.startswith(("vision_tower.", "multi_modal_projector.")):
                name = "model." + name
            if "wqkv" in name:
                out |= {name.replace("attention.wqkv", f"self_attn.{part}_proj"): rows for part, rows in self.split_wqkv(value).items()}
            elif "attn.qkv" in name:
                out |= {name.replace("attn.qkv", f"attention.{part}_proj"): rows for part, rows in zip("qkv", value.chunk(3))}
            else:
                out[name] = value
        return out

    def text(self, question, images):
        image = "<img><image></img>"
        return (f"<|im_start|>system\n{INTERNVL_SYSTEM}<|im_end|><|im_start|>user\n" + marked(question, images, image + "\n", image)
                + "<|im_end|><|im_start|>assistant\n")

    def decode(self, ids):
        return self.pieces.decode(ids).removeprefix(" ")  # as InternLM2's tokenizer does

    def pixels(self, pictures, options):
        config, processor = self.files["config.json"], self.files["preprocessor_config.json"]
        most = options.get("max_tiles", processor["max_patches"] if self.native else config["max_dynamic_patch"])
        made = GotOcr2ImageProcessorPil(crop_to_patches=True, min_patches=1, max_patches=most, size={"height": self.side, "width": self.side},
                                        image_mean=processor["image_mean"], image_std=processor["image_std"])
        batches = [made([p], return_tensors="pt") for p in pictures]
        return Pixels(torch.cat([b["pixel_values"] for b in batches]), [int(b["num_patches"][0]) for b in batches])

    def visual_tokens(self, pixels, image):
        return pixels.parts[image] * self.tile

    layer, strategy = -1, "default"

    def features(self, pixels):
        return self.model.model.get_image_features(pixels.values, vision_feature_layer=self.layer, vision_feature_select_strategy=self.strategy,
                                                   return_dict=True).pooler_output.flatten(0, 1)


class Vila(Reference):
    """Decoder, tower and projector, each by itself. part: what a published name begins with."""

    first = [1]
    image = -200

    def load_llama(self, config: dict, weights: dict):
        made = LlamaConfig(**{k: v for k, v in config.items() if k not in ("model_type", "architectures", "torch_dtype")})
        made._attn_implementation = "eager"
        whole = LlamaForCausalLM(made)
        whole.load_state_dict(weights, strict=True)
        self.llama, self.lm_head = whole.model, whole.lm_head

    def load_tower(self, kind, config, weights: dict):
        config._attn_implementation = "eager"
        self.tower = kind(config)
        self.tower.load_state_dict(weights, strict=True)

    def modules(self):
        return [self.llama, self.lm_head, self.tower, self.projector]

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids):
        return self.tokenizer.decode(ids)

    def text(self, question, images):
        return runs.prompt_text("vicuna_v1", question, images)

    layer = -2

    def states(self, pixels):
        return self.tower(pixels.values.to(self.dtype), output_hidden_states=True).hidden_states[self.layer]


def under(weights: dict, prefix: str) -> dict:
    return {n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}


class Vila15(Vila):
    def build(self, weights):
        llm = dict(self.files["llm/config.json"])
        longest = llm.pop("model_max_length", 0)
        if longest > llm["max_position_embeddings"]:
            theta, factor = llm.pop("rope_theta"), -(-longest // llm["max_position_embeddings"])
            llm |= {"rope_parameters": {"rope_type": "linear", "factor": float(factor), "rope_theta": theta}, "max_position_embeddings": longest}
        self.load_llama(llm, under(weights, "llm/"))
        vision = self.files["vision_tower/config.json"]
        config = SiglipVisionConfig(**{k: v for k, v in vision.items() if k != "model_type"}, vision_use_head=False)
        self.load_tower(SiglipVisionModel, config, under(weights, "vision_tower/vision_model."))
        width, d = 4 * vision["hidden_size"], self.llama.config.hidden_size
        self.projector = torch.nn.Sequential(torch.nn.Identity(), torch.nn.LayerNorm(width, 1e-5), torch.nn.Linear(width, d), torch.nn.GELU(),
                                             torch.nn.Linear(d, d))
        self.projector.load_state_dict(under(weights, "mm_projector/layers."), strict=True)
        self.unit, self.side = self.projector[2], vision["image_size"]
        self.count = (-(-(self.side // vision["patch_size"]) // 2)) ** 2
        self.llama3 = "llm/tokenizer_config.json" in self.files
        self.tokenizer = Tokenizer.from_file(str(ROOT / "bpe/llama3/tokenizer.json" if self.llama3 else TOKENIZER / "tokenizer.json"))
        self.first = [self.tokenizer.token_to_id("<|begin_of_text|>" if self.llama3 else "<s>")]

    def text(self, question, images):
        if not self.llama3:
            return super().text(question, images)
        head = "<|start_header_id|>{}<|end_header_id|>\n\n"
        return (head.format("system") + "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, "
                "and assist the user with a variety of tasks using natural language.<|eot_id|>" + head.format("user")
                + marked(question, images, "<image>\n") + "<|eot_id|>" + head.format("assistant"))

    def pixels(self, pictures, options):
        processor = self.files["vision_tower/preprocessor_config.json"]
        made = SiglipImageProcessorPil(size=processor["size"], image_mean=processor["image_mean"], image_std=processor["image_std"])
        return Pixels(made(pictures, return_tensors="pt")["pixel_values"], [1] * len(pictures))

    def visual_tokens(self, pixels, image):
        return self.count

    def merged(self, x: torch.Tensor) -> torch.Tensor:
        """[images, side, side, C] -> [images, tokens, 4 C]: zeros to an even side; two rows and two columns become one token, column by column."""
        side = x.shape[1]
        x = torch.nn.functional.pad(x, (0, 0, 0, side % 2, 0, side % 2))
        half = x.shape[1] // 2
        tokens = [torch.cat([x[:, 2 * r + a, 2 * c + b] for a in (0, 1) for b in (0, 1)], -1) for c in range(half) for r in range(half)]
        return torch.stack(tokens, 1)

    def features(self, pixels):
        x = self.states(pixels)
        side = int(x.shape[1] ** 0.5)
        return self.projector(self.merged(x.unflatten(1, (side, side)))).flatten(0, 1)


class Vila1(Vila):
    def build(self, weights):
        config = self.files["config.json"]
        llama = {k: v for k, v in config.items() if not k.startswith("mm_") and k != "image_aspect_ratio"}
        tower = "clip/vision_model." if any(n.startswith("clip/") for n in weights) else "model.vision_tower.vision_tower.vision_model."
        own = {n: v for n, v in weights.items() if n.startswith(("model.", "lm_head.")) and not n.startswith(("model.vision_tower.", "model.mm_projector."))}
        self.load_llama(llama, own)
        vision = self.files["clip/config.json"]
        self.load_tower(CLIPVisionModel, CLIPVisionConfig(**{k: v for k, v in vision.items() if k != "model_type"}), under(weights, tower))
        d = config["hidden_size"]
        self.projector = torch.nn.Sequential(torch.nn.Linear(vision["hidden_size"], d), torch.nn.GELU(), torch.nn.Linear(d, d))
        self.projector.load_state_dict(under(weights, "model.mm_projector."), strict=True)
        self.unit, self.count = self.projector[0], (vision["image_size"] // 14) ** 2
        self.tokenizer = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))

    def pixels(self, pictures, options):
        processor = {k: v for k, v in self.files["clip/preprocessor_config.json"].items() if k != "feature_extractor_type"}
        values = LlavaImageProcessorPil(do_pad=True, **processor)(pictures, return_tensors="np")["pixel_values"]
        return Pixels(torch.from_numpy(np.stack(values)), [1] * len(pictures))

    def visual_tokens(self, pixels, image):
        return self.count

    def features(self, pixels):
        return self.projector(self.states(pixels)[:, 1:]).flatten(0, 1)


def build(case: dict, dtype: str = "float32") -> Reference:
    return {"Qwen2Vl": Qwen2Vl, "InternVl": InternVl, "Vila15": Vila15, "Vila1": Vila1}[case["_reference"]](case, dtype)


def new_state(reference: Reference, prompt: Prompt, params, kind=var.VarState) -> var.VarState:
    return kind(params, len(reference.llama.layers), reference.case["sink_dims"], prompt.visual())


def embeddings(reference: Reference, prompt: Prompt) -> torch.Tensor:
    out = reference.embed(prompt.ids)
    if prompt.features is not None:
        out[0, prompt.visual()] = prompt.features.to(out.dtype)
    return out


@contextmanager
def watched(state: var.VarState):
    var.STATE = state
    try:
        yield
    finally:
        var.STATE = None


@torch.no_grad()
def generate(reference: Reference, prompt: Prompt, state: var.VarState, steps: int, stop=None) -> tuple[list[int], torch.Tensor]:
    """Greedy tokens and the logits that chose them. stop(row) ends a run early."""
    hidden, positions = embeddings(reference, prompt), prompt.positions
    cache, tokens, rows = DynamicCache(), [], []
    with watched(state):
        for step in range(steps):
            out = reference.llama(inputs_embeds=hidden, position_ids=positions, past_key_values=cache, use_cache=True).last_hidden_state
            rows.append(reference.lm_head(out)[0, -1])
            tokens.append(int(rows[-1].float().argmax()))
            if stop is not None and stop(rows[-1]):
                break
            hidden = reference.embed(tokens[-1:])
            positions = torch.full((*positions.shape[:-1], 1), reference.after(prompt.positions) + step)
    return tokens, torch.stack(rows)


@torch.no_grad()
def teacher_forced(reference: Reference, prompt: Prompt, tokens: list[int], state: var.VarState) -> torch.Tensor:
    """Logits when prompt and tokens pass in one piece."""
    more = reference.embed(tokens[:-1])
    after = reference.after(prompt.positions) + torch.arange(len(tokens) - 1)
    positions = torch.cat([prompt.positions, after.expand(*prompt.positions.shape[:-1], -1)], -1)
    with watched(state):
        out = reference.llama(inputs_embeds=torch.cat([embeddings(reference, prompt), more], 1), position_ids=positions,
                              past_key_values=DynamicCache(), use_cache=True).last_hidden_state
    return reference.lm_head(out)[0, len(prompt.ids) - 1 :]
