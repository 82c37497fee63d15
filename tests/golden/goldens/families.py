"""families/: tiny Qwen2-VL, InternVL2 and VILA-1.5 models in published form, what transformers answers with them, with VAR and without.

Weights are those of generator.py under the published names. Sink dimensions are not planted: tau is so low that ordinary tokens are sinks.
"""

import copy
import json
from types import SimpleNamespace

import numpy as np
import sentencepiece
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import (DynamicCache, InternVLConfig, InternVLForConditionalGeneration, LlamaConfig, LlamaForCausalLM, Qwen2VLConfig,
                          Qwen2VLForConditionalGeneration, SiglipVisionConfig, SiglipVisionModel)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llama import modeling_llama
from transformers.models.qwen2_vl import modeling_qwen2_vl
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from . import bpe, generator, runs, store, var
from .cases import CLIP_MEAN, CLIP_STD, entry, linear, norm, override, uniform
from .paths import ROOT, TOKENIZER

FOLDER = ROOT / "families"
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
LANDSCAPE, PORTRAIT, TINY, FLAT = (f"images/{n}.png" for n in ("landscape", "portrait", "tiny", "flat"))
STEPS = 64
DIMS = dict(hidden=96, inner=160, layers=4, heads=6, kv_heads=2, head_dim=16)


def decoder_tensors(base: str, rows: int, bias: float) -> list[dict]:
    """embed_tokens, layers (Llama's names), norm."""
    width, inner, kv = DIMS["hidden"], DIMS["inner"], DIMS["kv_heads"] * DIMS["head_dim"]
    out = [entry(base + "embed_tokens.weight", [rows, width], uniform(1.0, width))]
    for i in range(DIMS["layers"]):
        layer = f"{base}layers.{i}."
        out += linear(layer + "self_attn.q_proj", width, width, 1.5, bias) + linear(layer + "self_attn.k_proj", kv, width, 1.0, bias)
        out += linear(layer + "self_attn.v_proj", kv, width, 1.0, bias) + linear(layer + "self_attn.o_proj", width, width, 0.2)
        out += linear(layer + "mlp.gate_proj", inner, width) + linear(layer + "mlp.up_proj", inner, width) + linear(layer + "mlp.down_proj", width, inner, 0.3)
        out += norm(layer + "input_layernorm", width, 1.0, 0.0) + norm(layer + "post_attention_layernorm", width, 1.0, 0.0)
    return out + norm(base + "norm", width, 1.0, 0.0)


def qwen2_vl_case(name: str, tied: bool, depth: int, embed_dim: int, heads: int) -> dict:
    """`tied`: as the 2B, in transformers 5's nested spelling; else as the 7B, flat."""
    tokenizer = Tokenizer.from_file(str(ROOT / "bpe/qwen2/tokenizer.json"))
    special = {t: tokenizer.token_to_id(t) for t in bpe.QWEN2_SPECIAL}
    rows, width = 608, DIMS["hidden"]
    text = {"vocab_size": rows, "hidden_size": width, "intermediate_size": DIMS["inner"], "num_hidden_layers": DIMS["layers"],
            "num_attention_heads": DIMS["heads"], "num_key_value_heads": DIMS["kv_heads"], "max_position_embeddings": 1024, "rms_norm_eps": 1e-6,
            "hidden_act": "silu", "use_sliding_window": False, "bos_token_id": None, "eos_token_id": special["<|im_end|>"]}
    vision = {"depth": depth, "embed_dim": embed_dim, "hidden_size": width, "num_heads": heads, "mlp_ratio": 3, "patch_size": 14,
              "spatial_merge_size": 2, "temporal_patch_size": 2, "hidden_act": "quick_gelu"}
    sections = [2, 3, 3]
    top = {"model_type": "qwen2_vl", "image_token_id": special["<|image_pad|>"], "vision_start_token_id": special["<|vision_start|>"],
           "vision_end_token_id": special["<|vision_end|>"], "video_token_id": 0, "tie_word_embeddings": tied, "torch_dtype": "float32"}
    if tied:
        rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}}
        config = {**top, "text_config": {**text, **rope, "model_type": "qwen2_vl_text"}, "vision_config": vision}
    else:
        config = {**top, **text, "rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": sections}, "vision_config": {**vision, "in_chans": 3}}
    tensors = [entry("visual.patch_embed.proj.weight", [embed_dim, 3, 2, 14, 14], uniform(1.0, 3 * 2 * 14 * 14))]
    for i in range(depth):
        block = f"visual.blocks.{i}."
        tensors += norm(block + "norm1", embed_dim, 1.0, 0.1) + norm(block + "norm2", embed_dim, 1.0, 0.1)
        tensors += linear(block + "attn.qkv", 3 * embed_dim, embed_dim, 1.5, 0.1) + linear(block + "attn.proj", embed_dim, embed_dim, 0.5, 0.1)
        tensors += linear(block + "mlp.fc1", 3 * embed_dim, embed_dim, 1.5, 0.1) + linear(block + "mlp.fc2", embed_dim, 3 * embed_dim, 0.5, 0.1)
    tensors += norm("visual.merger.ln_q", embed_dim, 1.0, 0.1) + linear("visual.merger.mlp.0", 4 * embed_dim, 4 * embed_dim, 1.5, 0.1)
    tensors += linear("visual.merger.mlp.2", width, 4 * embed_dim, 0.2, 0.02) + decoder_tensors("model.", rows, 0.2)
    overrides = []
    if not tied:
        tensors += linear("lm_head", rows, width)
        overrides = [override("lm_head.weight", i * width, width, set=0.0) for i in special.values()]
    else:  # signs at random, or every token would be most like itself
        tensors = [entry("model.norm.weight", [width], uniform(1.4)) if t["name"] == "model.norm.weight" else t for t in tensors]
    files = {"config.json": config, "preprocessor_config.json": {"min_pixels": 3136, "max_pixels": 20000 if tied else 12845056, "patch_size": 14,
                                                                 "temporal_patch_size": 2, "merge_size": 2, "image_mean": CLIP_MEAN, "image_std": CLIP_STD}}
    names = ["vocab.json", "merges.txt", "tokenizer_config.json"] if tied else ["tokenizer.json", "tokenizer_config.json"]
    return {"name": name, "family": "qwen2_vl", "seed_name": name, "dtype": "float32", "sink_dims": [7, 50], "files": files,
            "copies": ["bpe/qwen2/" + n for n in names], "tensors": tensors, "overrides": overrides}


def internvl_case(name: str, image: int, max_tiles: int, scale: float) -> dict:
    """InternVLChatModel as published."""
    rows, width, hidden, inner, layers, heads = 448, DIMS["hidden"], 48, 96, 3, 3
    text = {"vocab_size": rows, "hidden_size": width, "intermediate_size": DIMS["inner"], "num_hidden_layers": DIMS["layers"],
            "num_attention_heads": DIMS["heads"], "num_key_value_heads": DIMS["kv_heads"], "max_position_embeddings": 1024, "rms_norm_eps": 1e-5,
            "rope_theta": 1e6, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}
    vision = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads, "image_size": image,
              "patch_size": 14, "hidden_act": "gelu", "norm_type": "layer_norm", "layer_norm_eps": 1e-6}
    added = {t: 440 + i for i, t in enumerate(bpe.INTERNLM2_SPECIAL)}
    config = {"model_type": "internvl_chat", "architectures": ["InternVLChatModel"], "downsample_ratio": 0.5, "dynamic_image_size": True,
              "force_image_size": image, "min_dynamic_patch": 1, "max_dynamic_patch": max_tiles, "ps_version": "v2", "select_layer": -1,
              "template": "internlm2-chat", "use_thumbnail": True, "torch_dtype": "float32",
              "llm_config": {**text, "architectures": ["InternLM2ForCausalLM"], "bias": False, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
              "vision_config": {**vision, "qkv_bias": True, "qk_normalization": False}}
    processor = {"crop_size": image, "do_center_crop": True, "do_normalize": True, "do_resize": True, "feature_extractor_type": "CLIPFeatureExtractor",
                 "image_mean": IMAGENET[0], "image_std": IMAGENET[1], "resample": 3, "size": image}
    tokens = (image // 14) ** 2 + 1
    tensors = [entry("vision_model.embeddings.class_embedding", [1, 1, hidden], uniform(1.0)),
               entry("vision_model.embeddings.position_embedding", [1, tokens, hidden], uniform(0.5)),
               entry("vision_model.embeddings.patch_embedding.weight", [hidden, 3, 14, 14], uniform(1.0, 3 * 14 * 14)),
               entry("vision_model.embeddings.patch_embedding.bias", [hidden], uniform(0.2))]
    for i in range(layers):
        layer = f"vision_model.encoder.layers.{i}."
        tensors += linear(layer + "attn.qkv", 3 * hidden, hidden, 1.5, 0.1) + linear(layer + "attn.proj", hidden, hidden, 1.0, 0.1)
        tensors += linear(layer + "mlp.fc1", inner, hidden, 1.5, 0.1) + linear(layer + "mlp.fc2", hidden, inner, 1.0, 0.1)
        tensors += norm(layer + "norm1", hidden, 1.0, 0.1) + norm(layer + "norm2", hidden, 1.0, 0.1)
        tensors += [entry(layer + "ls1", [hidden], uniform(0.2), 0.5), entry(layer + "ls2", [hidden], uniform(0.2), 0.5)]
    tensors += norm("mlp1.0", 4 * hidden, 1.0, 0.1) + linear("mlp1.1", width, 4 * hidden, 1.5, 0.1) + linear("mlp1.3", width, width, scale, 0.02)
    for tensor in decoder_tensors("language_model.model.", rows, 0.0) + linear("language_model.lm_head", rows, width):
        tensors += fused(tensor)
    overrides = [override("language_model.output.weight", i * width, width, set=0.0) for i in (0, 1, 2, *added.values())]
    return {"name": name, "family": "internvl", "seed_name": name, "dtype": "float32", "sink_dims": [7, 50],
            "files": {"config.json": config, "preprocessor_config.json": processor},
            "copies": ["bpe/internlm2/tokenizer.model", "bpe/internlm2/added_tokens.json"], "tensors": tensors, "overrides": overrides}


def vila_case(name: str, llama3: bool, image: int, patch: int) -> dict:
    """VILA-1.5 as published, a folder for each part; Llama-2's tokenizer or Llama-3's."""
    rows, width, hidden, inner, layers = (576 if llama3 else 512), DIMS["hidden"], 48, 96, 4
    text = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": rows, "hidden_size": width, "intermediate_size": DIMS["inner"],
            "num_hidden_layers": DIMS["layers"], "num_attention_heads": DIMS["heads"], "num_key_value_heads": DIMS["kv_heads"], "rms_norm_eps": 1e-5,
            "max_position_embeddings": 1024 if llama3 else 200, "model_max_length": 1024 if llama3 else 500, "rope_theta": 5e5 if llama3 else 1e4,
            "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False, "torch_dtype": "float32"}
    vision = {"model_type": "siglip_vision_model", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": 3,
              "image_size": image, "patch_size": patch, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
    config = {"model_type": "llava_llama", "architectures": ["LlavaLlamaModel"], "image_aspect_ratio": "resize", "mm_hidden_size": hidden,
              "mm_vision_select_feature": "cls_patch", "mm_vision_select_layer": -2, "mm_projector": "mlp_downsample", "model_dtype": "torch.float32"}
    tower, side = "vision_tower/vision_model.", image // patch
    tensors = [entry(tower + "embeddings.patch_embedding.weight", [hidden, 3, patch, patch], uniform(1.0, 3 * patch * patch)),
               entry(tower + "embeddings.patch_embedding.bias", [hidden], uniform(0.2)),
               entry(tower + "embeddings.position_embedding.weight", [side * side, hidden], uniform(0.5))]
    for i in range(layers):
        layer = f"{tower}encoder.layers.{i}."
        for part in ("q_proj", "k_proj", "v_proj"):
            tensors += linear(layer + "self_attn." + part, hidden, hidden, 1.5, 0.1)
        tensors += linear(layer + "self_attn.out_proj", hidden, hidden, 0.5, 0.1)
        tensors += linear(layer + "mlp.fc1", inner, hidden, 1.5, 0.1) + linear(layer + "mlp.fc2", hidden, inner, 0.5, 0.1)
        tensors += norm(layer + "layer_norm1", hidden, 1.0, 0.1) + norm(layer + "layer_norm2", hidden, 1.0, 0.1)
    tensors += norm(tower + "post_layernorm", hidden, 1.0, 0.1)
    tensors += norm("mm_projector/layers.1", 4 * hidden, 1.0, 0.1) + linear("mm_projector/layers.2", width, 4 * hidden, 1.5, 0.1)
    tensors += linear("mm_projector/layers.4", width, width, 0.4, 0.02) + decoder_tensors("llm/model.", rows, 0.0) + linear("llm/lm_head", rows, width)
    special = range(3)
    files = {"config.json": config, "llm/config.json": text, "vision_tower/config.json": vision, "mm_projector/config.json": {"mm_projector_type": "mlp_downsample"},
             "vision_tower/preprocessor_config.json": {"do_resize": True, "size": {"height": image, "width": image}, "resample": 3, "image_mean": [0.5] * 3,
                                                       "image_std": [0.5] * 3, "rescale_factor": 1 / 255, "image_processor_type": "SiglipImageProcessor"}}
    tokenizer = Tokenizer.from_file(str(ROOT / "bpe/llama3/tokenizer.json"))
    if llama3:
        entries = {str(tokenizer.token_to_id(t)): {"content": t, "special": True, "normalized": False} for t in bpe.LLAMA3_SPECIAL}
        special = [tokenizer.token_to_id(t) for t in bpe.LLAMA3_SPECIAL]
        files["llm/config.json"]["eos_token_id"] = tokenizer.token_to_id("<|end_of_text|>")
        files["llm/tokenizer_config.json"] = {"added_tokens_decoder": entries}
    copies = ["bpe/llama3/tokenizer.json"] if llama3 else ["tokenizer/tokenizer.model", "tokenizer/original/tokenizer_config.json"]
    overrides = [override("llm/lm_head.weight", i * width, width, set=0.0) for i in special]
    if not llama3:
        overrides.append(override("llm/lm_head.weight", 3 * width, 256 * width, multiply=0.25))  # byte pieces
    return {"name": name, "family": "vila", "seed_name": name, "dtype": "float32", "sink_dims": [7, 50], "files": files, "copies": copies,
            "copies_to": "llm", "tensors": tensors, "overrides": overrides}


def fused(tensor: dict) -> list[dict]:
    """A Llama tensor under InternLM2's name; q_proj becomes the whole wqkv, k_proj and v_proj nothing."""
    name, shape = tensor["name"], tensor["shape"]
    if ".k_proj." in name or ".v_proj." in name:
        return []
    for old, new in (("self_attn.q_proj", "attention.wqkv"), ("self_attn.o_proj", "attention.wo"), ("input_layernorm", "attention_norm"),
                     ("post_attention_layernorm", "ffn_norm"), ("mlp.gate_proj", "feed_forward.w1"), ("mlp.up_proj", "feed_forward.w3"),
                     ("mlp.down_proj", "feed_forward.w2"), ("embed_tokens", "tok_embeddings"), ("language_model.lm_head", "language_model.output")):
        name = name.replace(old, new)
    if "wqkv" in name:
        shape = [(DIMS["heads"] + 2 * DIMS["kv_heads"]) * DIMS["head_dim"], shape[1]]
    return [{**tensor, "name": name, "shape": shape}]


def unfused(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Published InternVL2 tensors under the names of transformers' modules."""
    out = {}
    for name, value in weights.items():
        for old, new in (("language_model.output.", "lm_head."), ("language_model.model.tok_embeddings", "model.language_model.embed_tokens"),
                         ("language_model.model.", "model.language_model."), ("attention.wo.", "self_attn.o_proj."), ("attention_norm", "input_layernorm"),
                         ("ffn_norm", "post_attention_layernorm"), ("feed_forward.w1", "mlp.gate_proj"), ("feed_forward.w3", "mlp.up_proj"),
                         ("feed_forward.w2", "mlp.down_proj"), ("mlp1.0", "model.multi_modal_projector.layer_norm"),
                         ("mlp1.1", "model.multi_modal_projector.linear_1"), ("mlp1.3", "model.multi_modal_projector.linear_2")):
            name = name.replace(old, new)
        if name.startswith("vision_model."):
            for old, new in (("vision_model.", "model.vision_tower."), ("class_embedding", "cls_token"), ("position_embedding", "position_embeddings"),
                             ("patch_embedding.", "patch_embeddings.projection."), ("encoder.layers", "encoder.layer"), ("attn.proj", "attention.projection_layer"),
                             ("norm1", "layernorm_before"), ("norm2", "layernorm_after"), ("ls1", "lambda_1"), ("ls2", "lambda_2")):
                name = name.replace(old, new)
        if "wqkv" in name:  # rows: key head, slot (queries, key, value), dimension
            group, dim = DIMS["heads"] // DIMS["kv_heads"], DIMS["head_dim"]
            slots = value.reshape(DIMS["kv_heads"], group + 2, dim, -1)
            for part, rows in (("q", slots[:, :group]), ("k", slots[:, group]), ("v", slots[:, group + 1])):
                out[name.replace("attention.wqkv", f"self_attn.{part}_proj")] = rows.reshape(-1, value.shape[1])
        elif "attn.qkv" in name:
            for part, rows in zip("qkv", value.chunk(3)):
                out[name.replace("attn.qkv", f"attention.{part}_proj")] = rows
        else:
            out[name] = value
    return out


class Qwen2Vl:
    def __init__(self, case: dict):
        config = Qwen2VLConfig(**copy.deepcopy(case["files"]["config.json"]))
        config._attn_implementation = "eager"
        self.case, self.model = case, Qwen2VLForConditionalGeneration(config).eval()
        weights = {n: torch.from_numpy(v) for n, v in generator.weights(case).items()}
        weights = {("model." + n if n.startswith("visual.") else n.replace("model.", "model.language_model.", 1)): v for n, v in weights.items()}
        if config.tie_word_embeddings:
            weights["lm_head.weight"] = weights["model.language_model.embed_tokens.weight"]
        self.model.load_state_dict(weights, strict=True)
        self.tokenizer = Tokenizer.from_file(str(ROOT / "bpe/qwen2/tokenizer.json"))
        self.image = config.image_token_id
        modeling_qwen2_vl.eager_attention_forward = var.attention
        var.install(self.model.model.language_model)

    def prompt(self, question: str, images: list[str], options: dict):
        processor = self.case["files"]["preprocessor_config.json"]
        least, most = options.get("min_pixels", processor["min_pixels"]), options.get("max_pixels", processor["max_pixels"])
        made = Qwen2VLImageProcessorPil(min_pixels=least, max_pixels=most, size={"shortest_edge": least, "longest_edge": most})
        text = ("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n" + "<|vision_start|><image><|vision_end|>" * len(images)
                + question + "<|im_end|>\n<|im_start|>assistant\n")
        if not images:
            ids = self.tokenizer.encode(text, add_special_tokens=False).ids
            return ids, [], None, torch.arange(len(ids)).expand(3, 1, -1)
        batch = made([Image.open(ROOT / i).convert("RGB") for i in images], return_tensors="pt")
        grids = batch["image_grid_thw"]
        ids, spans = expand(text, [int(g.prod()) // 4 for g in grids], self.image, lambda t: self.tokenizer.encode(t, add_special_tokens=False).ids)
        features = torch.cat(list(self.model.get_image_features(batch["pixel_values"], grids).pooler_output))
        x = torch.tensor([ids])
        positions, _ = self.model.model.get_rope_index(x, mm_token_type_ids=(x == self.image).int(), image_grid_thw=grids)
        return ids, spans, features, positions

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids)


class InternVl:
    def __init__(self, case: dict):
        config = case["files"]["config.json"]
        vision, text = config["vision_config"], config["llm_config"]
        text = {k: v for k, v in text.items() if k not in ("architectures", "bias", "rope_scaling", "model_type")}
        made = InternVLConfig(vision_config={**{k: v for k, v in vision.items() if k not in ("qkv_bias", "qk_normalization")}, "attention_bias": True,
                                             "use_mean_pooling": True, "model_type": "internvl_vision"},
                              text_config=LlamaConfig(**text).to_dict(), image_token_id=444, downsample_ratio=0.5, tie_word_embeddings=False)
        made._attn_implementation = "eager"
        self.case, self.model, self.image = case, InternVLForConditionalGeneration(made).eval(), 444
        weights = {n: torch.from_numpy(v) for n, v in generator.weights(case).items()}
        self.model.load_state_dict(unfused(weights), strict=True)
        pieces = sentencepiece.SentencePieceProcessor(str(ROOT / "bpe/internlm2/tokenizer.model"))
        self.encode = bpe.split_encode(pieces, {"<unk>": 0, "<s>": 1, "</s>": 2, **{t: 440 + i for i, t in enumerate(bpe.INTERNLM2_SPECIAL)}})
        modeling_llama.eager_attention_forward = var.attention
        var.install(self.model.model.language_model)

    def prompt(self, question: str, images: list[str], options: dict):
        config = self.case["files"]["config.json"]
        side, most = config["vision_config"]["image_size"], options.get("max_tiles", config["max_dynamic_patch"])
        made = GotOcr2ImageProcessorPil(crop_to_patches=True, min_patches=1, max_patches=most,
                                        size={"height": side, "width": side}, image_mean=IMAGENET[0], image_std=IMAGENET[1])
        text = ("<|im_start|>system\n你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。<|im_end|>"
                "<|im_start|>user\n" + "<img><image></img>\n" * len(images) + question + "<|im_end|><|im_start|>assistant\n")
        batches = [made([Image.open(ROOT / i).convert("RGB")], return_tensors="pt") for i in images]
        per_tile = (side // 28) ** 2
        ids, spans = expand(text, [int(b["num_patches"][0]) * per_tile for b in batches], self.image, self.encode)
        ids, spans = [1] + ids, [[a + 1, b + 1] for a, b in spans]
        features = None
        if images:
            pixels = torch.cat([b["pixel_values"] for b in batches])
            features = self.model.model.get_image_features(pixels, vision_feature_layer=-1, vision_feature_select_strategy="default",
                                                           return_dict=True).pooler_output.flatten(0, 1)
        return ids, spans, features, torch.arange(len(ids)).expand(1, -1)

    def decode(self, ids: list[int]):
        return None  # the text of sentencepiece models is held by text_vectors.json


class Vila:
    def __init__(self, case: dict):
        self.case, files = case, case["files"]
        llm = {k: v for k, v in files["llm/config.json"].items() if k not in ("model_type", "architectures", "torch_dtype", "model_max_length")}
        longest, own = files["llm/config.json"]["model_max_length"], llm["max_position_embeddings"]
        if longest > own:
            theta = llm.pop("rope_theta")
            llm |= {"rope_parameters": {"rope_type": "linear", "factor": float(-(-longest // own)), "rope_theta": theta}, "max_position_embeddings": longest}
        config = LlamaConfig(**llm)
        config._attn_implementation = "eager"
        vision = SiglipVisionConfig(**{k: v for k, v in files["vision_tower/config.json"].items() if k != "model_type"}, vision_use_head=False)
        vision._attn_implementation = "eager"
        weights = {n: torch.from_numpy(v) for n, v in generator.weights(case).items()}
        part = lambda prefix: {n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}  # noqa: E731
        llama, self.tower, self.projector = LlamaForCausalLM(config).eval(), SiglipVisionModel(vision).eval(), part("mm_projector/layers.")
        llama.load_state_dict(part("llm/"), strict=True)
        self.tower.load_state_dict(part("vision_tower/vision_model."), strict=True)
        self.model = SimpleNamespace(model=SimpleNamespace(language_model=llama.model), lm_head=llama.lm_head, get_input_embeddings=llama.get_input_embeddings)
        self.llama3 = "llm/tokenizer_config.json" in files
        self.tokenizer = Tokenizer.from_file(str(ROOT / "bpe/llama3/tokenizer.json" if self.llama3 else TOKENIZER / "tokenizer.json"))
        modeling_llama.eager_attention_forward = var.attention
        var.install(llama.model)

    @torch.no_grad()
    def features(self, pixels):
        """Zeros to an even side, two rows and two columns become one token, column by column; norm, linear, GELU, linear."""
        x = self.tower(pixels, output_hidden_states=True).hidden_states[-2]
        side = int(x.shape[1] ** 0.5)
        x = torch.nn.functional.pad(x.reshape(len(x), side, side, -1), (0, 0, 0, side % 2, 0, side % 2))
        half = x.shape[1] // 2
        tokens = [torch.cat([x[:, 2 * r + a, 2 * c + b] for a in (0, 1) for b in (0, 1)], -1) for c in range(half) for r in range(half)]
        w = self.projector
        y = torch.nn.functional.layer_norm(torch.stack(tokens, 1), (4 * x.shape[-1],), w["1.weight"], w["1.bias"], 1e-5)
        y = torch.nn.functional.gelu(torch.nn.functional.linear(y, w["2.weight"], w["2.bias"]))
        return torch.nn.functional.linear(y, w["4.weight"], w["4.bias"]).flatten(0, 1)

    def prompt(self, question: str, images: list[str], options: dict):
        side = self.case["files"]["vision_tower/config.json"]["image_size"]
        made = SiglipImageProcessorPil(size={"height": side, "width": side}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
        if self.llama3:
            head = "<|start_header_id|>{}<|end_header_id|>\n\n"
            text = (head.format("system") + "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, "
                    "and assist the user with a variety of tasks using natural language.<|eot_id|>" + head.format("user") + "<image>\n" * len(images) + question
                    + "<|eot_id|>" + head.format("assistant"))
        else:
            text = runs.prompt_text("vicuna_v1", question, len(images))
        patch = self.case["files"]["vision_tower/config.json"]["patch_size"]
        per_image = (-(-(side // patch) // 2)) ** 2
        first = [self.tokenizer.token_to_id("<|begin_of_text|>" if self.llama3 else "<s>")]
        ids, spans = expand(text, [per_image] * len(images), -200, lambda t: self.tokenizer.encode(t, add_special_tokens=False).ids)
        ids, spans = first + ids, [[a + 1, b + 1] for a, b in spans]
        features = None
        if images:
            features = self.features(made([Image.open(ROOT / i).convert("RGB") for i in images], return_tensors="pt")["pixel_values"])
        return ids, spans, features, torch.arange(len(ids)).expand(1, -1)

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids)


def expand(text: str, counts: list[int], image: int, encode) -> tuple[list[int], list[list[int]]]:
    ids, spans = [], []
    for i, part in enumerate(text.split("<image>")):
        if i:
            spans.append([len(ids), len(ids) + counts[i - 1]])
            ids += [image] * counts[i - 1]
        ids += encode(part)
    return ids, spans


@torch.no_grad()
def generate(family, ids, spans, features, positions, params):
    """Greedy tokens, their logits and the state of VAR."""
    model = family.model
    visual = torch.zeros(len(ids), dtype=torch.bool)
    for begin, end in spans:
        visual[begin:end] = True
    state = var.VarState(params, DIMS["layers"], family.case["sink_dims"], visual)
    hidden = model.get_input_embeddings()(torch.tensor([ids]).clamp(min=0)).clone()
    if features is not None:
        hidden[0, visual] = features
    cache, tokens, rows, following = DynamicCache(), [], [], int(positions.max()) + 1
    var.STATE = state
    for step in range(STEPS):
        out = model.model.language_model(inputs_embeds=hidden, position_ids=positions, past_key_values=cache, use_cache=True)
        rows.append(model.lm_head(out.last_hidden_state)[0, -1])
        tokens.append(int(rows[-1].argmax()))
        hidden = model.get_input_embeddings()(torch.tensor([tokens[-1:]]))
        positions = torch.full((*positions.shape[:-1], 1), following + step)
    var.STATE = None
    return tokens, torch.stack(rows), state


def good(state, logits, params, images) -> bool:
    margins = state.margins
    if float(runs.gaps(logits).min()) < runs.LEAST["gap"]:
        return False
    if params is None or not images:
        return True
    clear = margins.phi >= 1e-4 and margins.ratio >= runs.LEAST["ratio"] and margins.mass >= runs.LEAST["mass"]
    return clear and runs.SHARE[0] <= margins.selected / max(margins.eligible, 1) <= runs.SHARE[1]


def settings(on: bool):
    """Parameters to try until a run keeps clear of every threshold."""
    if not on:
        yield None
        return
    for tau in (1.75, 1.5, 2.0, 2.25):
        for rho in (0.8, 0.7, 0.6, 0.5, 0.9):
            for mass in (0.2, 0.1, 0.3):
                yield var.VarParams(tau=tau, rho=rho, min_visual_mass=mass, first_layer=1)


def record(family, name: str, images: list[str], on: bool, options: dict) -> tuple[dict, torch.Tensor]:
    for question in ("What is it?", "Is there a cat?", "How many boats are there?", "Describe the image.", "What colour is the red cat?", "Where is the lamp?"):
        for params in settings(on):
            ids, spans, features, positions = family.prompt(question, images, options)
            tokens, logits, state = generate(family, ids, spans, features, positions, params)
            if good(state, logits, params, images):
                entry = {"name": name, "question": question, "images": images, "options": options, "var": runs.var_dictionary(params), "max_new_tokens": STEPS,
                         "prompt_tokens": ids, "visual_spans": spans, "tokens": tokens, "logits": f"{family.case['name']}.{name}.logits"}
                if (text := family.decode(tokens)) is not None:
                    entry["text"] = text
                if params is not None:
                    entry |= {"selected_rows": [int(s.sum()) for s in state.selection()], "visual_sinks": state.visual_sinks(),
                              "margins": state.margins.dictionary()}
                return entry, logits
    raise RuntimeError(f"{family.case['name']}/{name}: no settings keep clear of the thresholds")


PLAN = [("off", [LANDSCAPE], False, {}), ("on", [PORTRAIT], True, {}), ("two_images", [TINY, LANDSCAPE], True, {}), ("text_only", [], False, {})]


def make() -> None:
    FOLDER.mkdir(exist_ok=True)
    made = [(qwen2_vl_case("qwen_flat", False, 2, 64, 2), Qwen2Vl, ("options", [LANDSCAPE], False, {"min_pixels": 4000, "max_pixels": 8000})),
            (qwen2_vl_case("qwen_tied", True, 3, 80, 4), Qwen2Vl, ("options", [FLAT], False, {"max_pixels": 50000})),
            (internvl_case("internvl_small", 56, 6, 0.3), InternVl, ("options", [PORTRAIT], False, {"max_tiles": 2})),
            (internvl_case("internvl_large", 84, 12, 0.5), InternVl, ("options", [LANDSCAPE], False, {"max_tiles": 1})),
            (vila_case("vila_llama2", False, 70, 14), Vila, ("square", [FLAT], False, {})),
            (vila_case("vila_llama3", True, 56, 8), Vila, ("square", [FLAT], False, {}))]
    cases, tensors = [], {}
    for case, kind, more in made:
        family, entries = kind(case), []
        for name, images, on, options in [*PLAN, more]:
            item, logits = record(family, name, images, on, options)
            entries.append(item)
            tensors[item["logits"]] = logits.contiguous()
            print(case["name"], name, item.get("margins"), flush=True)
        cases.append({**store.with_checksums(case), "runs": entries})
    save_file(tensors, str(FOLDER / "logits.safetensors"))
    (FOLDER / "logits.safetensors").chmod(0o644)
    (FOLDER / "manifest.json").write_text(json.dumps({"logits_bar": store.BAR, "cases": cases}, indent=None, ensure_ascii=False)
                                          .replace('{"name": ', '\n{"name": ') + "\n", encoding="utf-8")
