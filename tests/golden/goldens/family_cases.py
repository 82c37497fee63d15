"""The tiny Qwen2-VL, InternVL2 and VILA models: their published files, their tensors, and what is planted in them.

As in cases.py the residual streams are small, so that the epsilon of a norm is felt, and the massive dimensions are damped by the norms.
"""

import json
from dataclasses import dataclass, replace

from tokenizers import Tokenizer

from . import bpe
from .cases import CLIP_MEAN, CLIP_STD, entry, linear, norm, override, uniform
from .paths import ROOT

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
MASSIVE = 64.0
UNIT_TIMES, UNIT_GAIN = 8.0, 12.0  # of the projector's hidden unit that writes the massive value of some visual tokens
STREAM = 0.025  # standard deviation of a tower's residual stream


@dataclass
class Decoder:
    """Sizes of a language model. names: where a Llama tensor's name begins."""

    hidden: int = 480
    inner: int = 608
    layers: int = 4
    heads: int = 6
    kv_heads: int = 2
    rows: int = 512

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


WIDE = Decoder()
NARROW = Decoder(hidden=448, inner=576, heads=4, kv_heads=4)
SINK_DIMS = [29, 301]  # BOS and visual tokens; text sinks


def decoder_tensors(base: str, d: Decoder, bias: float) -> list[dict]:
    """embed_tokens, layers (Llama's names), norm; massive dimensions damped by overrides()."""
    kv = d.kv_heads * d.head_dim
    out = [entry(base + "embed_tokens.weight", [d.rows, d.hidden], uniform(1.0, d.hidden))]
    for i in range(d.layers):
        layer = f"{base}layers.{i}."
        out += linear(layer + "self_attn.q_proj", d.hidden, d.hidden, 1.5, bias) + linear(layer + "self_attn.k_proj", kv, d.hidden, 1.0, bias)
        out += linear(layer + "self_attn.v_proj", kv, d.hidden, 1.0, bias) + linear(layer + "self_attn.o_proj", d.hidden, d.hidden, 0.2)
        out += linear(layer + "mlp.gate_proj", d.inner, d.hidden) + linear(layer + "mlp.up_proj", d.inner, d.hidden)
        out += linear(layer + "mlp.down_proj", d.hidden, d.inner, 0.3)
        out += norm(layer + "input_layernorm", d.hidden, 1.0, 0.0) + norm(layer + "post_attention_layernorm", d.hidden, 1.0, 0.0)
    return out + norm(base + "norm", d.hidden, 1.0, 0.0)


@dataclass
class Planting:
    """Where the massive values go: names under which a family publishes the tensors, and tokens."""

    embed: str
    norms: list[str]
    first: int  # BOS, or what stands first
    silent: list[int]  # tokens whose head rows are 0: they are never generated
    head: str | None  # None: tied
    hidden_layer: str  # of the projector, without .weight
    hidden_width: int  # its inputs
    last_layer: str

    def overrides(self, d: Decoder) -> list[dict]:
        width, head = d.hidden, self.head or self.embed
        out = [override(head, i * width, width, set=0.0) for i in self.silent]
        out.append(override(self.embed, self.first * width + SINK_DIMS[0], set=MASSIVE))
        out += [override(self.embed, i * width + SINK_DIMS[1], set=-MASSIVE) for i in range(270 + d.heads, 430, 23)]
        return out + [override(name, dim, set=0.5) for name in self.norms for dim in SINK_DIMS]

    def unit(self, d: Decoder, unit: int, bias: float) -> list[dict]:
        """The unit and its threshold, which plant.py chooses."""
        return [override(self.hidden_layer + ".weight", unit * self.hidden_width, self.hidden_width, multiply=UNIT_TIMES),
                override(self.hidden_layer + ".bias", unit, set=bias),
                override(self.last_layer + ".weight", SINK_DIMS[0] * d_in(self, d) + unit, set=UNIT_GAIN)]


def d_in(planting: Planting, d: Decoder) -> int:
    """Columns of the projector's last layer: Qwen2-VL's merger keeps the width of its input."""
    return planting.hidden_width if "merger" in planting.last_layer else d.hidden


def input_norms(base: str, d: Decoder, name: str = "input_layernorm") -> list[str]:
    return [f"{base}layers.{i}.{name}.weight" for i in range(d.layers)]


def finish(name: str, family: str, reference: str, d: Decoder, planting: Planting, dtype: str = "float32", **more) -> dict:
    """The manifest's entry of a case but for the planted unit; keys with a leading underscore stay out of the manifest."""
    return {"name": name, "family": family, "seed_name": name, "dtype": dtype, "sink_dims": SINK_DIMS,
            "overrides": planting.overrides(d), "_reference": reference, "_decoder": d, "_planting": planting, **more}


def qwen2_vl(name: str, tied: bool, depth: int, embed_dim: int, heads: int, dtype: str = "float32") -> dict:
    """`tied`: as the 2B, in transformers 5's nested configuration and its names in memory; else as the 7B was published."""
    tokenizer = Tokenizer.from_file(str(ROOT / "bpe/qwen2/tokenizer.json"))
    special = {t: tokenizer.token_to_id(t) for t in bpe.QWEN2_SPECIAL}
    d = replace(NARROW if tied else WIDE, rows=608, kv_heads=2)
    text = {"vocab_size": d.rows, "hidden_size": d.hidden, "intermediate_size": d.inner, "num_hidden_layers": d.layers,
            "num_attention_heads": d.heads, "num_key_value_heads": d.kv_heads, "max_position_embeddings": 1024, "rms_norm_eps": 1e-6,
            "hidden_act": "silu", "use_sliding_window": False, "bos_token_id": None, "eos_token_id": special["<|im_end|>"]}
    vision = {"depth": depth, "embed_dim": embed_dim, "hidden_size": d.hidden, "num_heads": heads, "mlp_ratio": 3, "patch_size": 14,
              "spatial_merge_size": 2, "temporal_patch_size": 2, "hidden_act": "quick_gelu"}
    half = d.head_dim // 2
    sections = [half // 4, (half - half // 4) // 2, half - half // 4 - (half - half // 4) // 2]
    top = {"model_type": "qwen2_vl", "image_token_id": special["<|image_pad|>"], "vision_start_token_id": special["<|vision_start|>"],
           "vision_end_token_id": special["<|vision_end|>"], "video_token_id": 0, "tie_word_embeddings": tied}
    if tied:
        rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}}
        config = {**top, "dtype": dtype, "text_config": {**text, **rope, "model_type": "qwen2_vl_text"}, "vision_config": vision}
    else:
        config = {**top, **text, "torch_dtype": dtype, "rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": sections},
                  "vision_config": {**vision, "in_chans": 3}}
    tower, base, merged = ("model.visual.", "model.language_model.", 4 * embed_dim) if tied else ("visual.", "model.", 4 * embed_dim)
    tensors = [entry(tower + "patch_embed.proj.weight", [embed_dim, 3, 2, 14, 14], uniform(STREAM, 3 * 2 * 14 * 14))]
    for i in range(depth):
        block = f"{tower}blocks.{i}."
        tensors += norm(block + "norm1", embed_dim, 1.0, 0.1) + norm(block + "norm2", embed_dim, 1.0, 0.1)
        tensors += linear(block + "attn.qkv", 3 * embed_dim, embed_dim, 1.5, 0.1) + linear(block + "attn.proj", embed_dim, embed_dim, 0.04, 0.005)
        tensors += linear(block + "mlp.fc1", 3 * embed_dim, embed_dim, 2.5, 0.1) + linear(block + "mlp.fc2", embed_dim, 3 * embed_dim, 0.04, 0.005)
    tensors += norm(tower + "merger.ln_q", embed_dim, 1.0, 0.1) + linear(tower + "merger.mlp.0", merged, merged, 1.5, 0.1)
    tensors += linear(tower + "merger.mlp.2", d.hidden, merged, 0.06, 0.01) + decoder_tensors(base, d, 0.2)
    if tied:  # signs at random, or every token would be most like itself
        tensors = [entry(base + "norm.weight", [d.hidden], uniform(1.4)) if t["name"] == base + "norm.weight" else t for t in tensors]
    else:
        tensors += linear("lm_head", d.rows, d.hidden)
    planting = Planting(base + "embed_tokens.weight", input_norms(base, d), special["<|im_start|>"], list(special.values()),
                        None if tied else "lm_head.weight", tower + "merger.mlp.0", merged, tower + "merger.mlp.2")
    files = {"config.json": config, "preprocessor_config.json": {"min_pixels": 3136, "max_pixels": 20000 if tied else 12845056, "patch_size": 14,
                                                                 "temporal_patch_size": 2, "merge_size": 2, "image_mean": CLIP_MEAN, "image_std": CLIP_STD}}
    names = ["vocab.json", "merges.txt", "tokenizer_config.json"] if tied else ["tokenizer.json", "tokenizer_config.json"]
    out = finish(name, "qwen2_vl", "Qwen2Vl", d, planting, dtype, files=files, copies=["bpe/qwen2/" + n for n in names], tensors=tensors)
    if tied:
        out["overrides"] += [override(base + "norm.weight", dim, set=0.0) for dim in SINK_DIMS]
    return out


def intern_vit(hidden: int, inner: int, layers: int, tokens: int) -> list[dict]:
    tensors = [entry("vision_model.embeddings.class_embedding", [1, 1, hidden], uniform(STREAM)),
               entry("vision_model.embeddings.position_embedding", [1, tokens, hidden], uniform(STREAM / 2)),
               entry("vision_model.embeddings.patch_embedding.weight", [hidden, 3, 14, 14], uniform(STREAM, 3 * 14 * 14)),
               entry("vision_model.embeddings.patch_embedding.bias", [hidden], uniform(STREAM / 4))]
    for i in range(layers):
        layer = f"vision_model.encoder.layers.{i}."
        tensors += linear(layer + "attn.qkv", 3 * hidden, hidden, 1.5, 0.1) + linear(layer + "attn.proj", hidden, hidden, 0.06, 0.01)
        tensors += linear(layer + "mlp.fc1", inner, hidden, 1.2, 0.1) + linear(layer + "mlp.fc2", hidden, inner, 0.12, 0.01)
        tensors += norm(layer + "norm1", hidden, 1.0, 0.1) + norm(layer + "norm2", hidden, 1.0, 0.1)
        tensors += [entry(layer + "ls1", [hidden], uniform(0.2), 0.5), entry(layer + "ls2", [hidden], uniform(0.2), 0.5)]
    return tensors


INTERNLM2_NAMES = (("self_attn.o_proj", "attention.wo"), ("input_layernorm", "attention_norm"), ("post_attention_layernorm", "ffn_norm"),
                   ("mlp.gate_proj", "feed_forward.w1"), ("mlp.up_proj", "feed_forward.w3"), ("mlp.down_proj", "feed_forward.w2"),
                   ("embed_tokens", "tok_embeddings"), ("language_model.lm_head", "language_model.output"))
VIT_NAMES = (("vision_model.", "vision_tower."), ("class_embedding", "cls_token"), ("position_embedding", "position_embeddings"),
             ("patch_embedding.", "patch_embeddings.projection."), ("encoder.layers", "encoder.layer"), ("attn.proj", "attention.projection_layer"),
             ("norm1", "layernorm_before"), ("norm2", "layernorm_after"), ("ls1", "lambda_1"), ("ls2", "lambda_2"))
PROJECTOR_NAMES = (("mlp1.0", "multi_modal_projector.layer_norm"), ("mlp1.1", "multi_modal_projector.linear_1"),
                   ("mlp1.3", "multi_modal_projector.linear_2"))


def fused(tensor: dict, d: Decoder) -> list[dict]:
    """A Llama tensor under InternLM2's name; q_proj becomes the whole wqkv, k_proj and v_proj nothing."""
    name, shape = tensor["name"], tensor["shape"]
    if ".k_proj." in name or ".v_proj." in name:
        return []
    for old, new in INTERNLM2_NAMES:
        name = name.replace(old, new)
    if ".q_proj." in name:
        name, shape = name.replace("self_attn.q_proj", "attention.wqkv"), [(d.heads + 2 * d.kv_heads) * d.head_dim, shape[1]]
    return [{**tensor, "name": name, "shape": shape}]


def native_vit(tensor: dict) -> list[dict]:
    """An InternViT tensor under transformers' name; qkv in three."""
    name = tensor["name"]
    if "attn.qkv" in name:
        rows = tensor["shape"][0] // 3
        return [{**t, "shape": [rows, *t["shape"][1:]]} for part in "qkv"
                for t in native_vit({**tensor, "name": name.replace("attn.qkv", f"attention.{part}_proj")})]
    for old, new in (*VIT_NAMES, *PROJECTOR_NAMES):
        name = name.replace(old, new)
    return [{**tensor, "name": name}]


def internvl(name: str, image: int, max_tiles: int, d: Decoder, native: bool = False, dtype: str = "float32") -> dict:
    """InternVLChatModel as published; `native`: as transformers names it."""
    d = replace(d, rows=448)
    hidden, inner, layers, heads = 48, 96, 3, 3
    text = {"vocab_size": d.rows, "hidden_size": d.hidden, "intermediate_size": d.inner, "num_hidden_layers": d.layers,
            "num_attention_heads": d.heads, "num_key_value_heads": d.kv_heads, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5,
            "rope_theta": 1e6, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}
    vision = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads, "image_size": image,
              "patch_size": 14, "hidden_act": "gelu", "norm_type": "layer_norm", "layer_norm_eps": 1e-6}
    added = {t: 440 + i for i, t in enumerate(bpe.INTERNLM2_SPECIAL)}
    processor = {"image_mean": IMAGENET[0], "image_std": IMAGENET[1], "do_normalize": True, "do_resize": True, "resample": 3}
    if native:
        config = {"model_type": "internvl", "architectures": ["InternVLForConditionalGeneration"], "downsample_ratio": 0.5,
                  "image_token_id": added["<IMG_CONTEXT>"], "tie_word_embeddings": False, "projector_hidden_act": "gelu", "dtype": dtype,
                  "vision_feature_layer": -1, "vision_feature_select_strategy": "default", "text_config": {**text, "model_type": "llama"},
                  "vision_config": {**vision, "image_size": [image, image], "patch_size": [14, 14], "model_type": "internvl_vision",
                                    "attention_bias": True, "use_qk_norm": False, "use_mean_pooling": True}}
        processor |= {"crop_to_patches": True, "min_patches": 1, "max_patches": max_tiles, "size": {"height": image, "width": image},
                      "image_processor_type": "GotOcr2ImageProcessor", "do_rescale": True, "rescale_factor": 1 / 255, "do_convert_rgb": True}
    else:
        config = {"model_type": "internvl_chat", "architectures": ["InternVLChatModel"], "downsample_ratio": 0.5, "dynamic_image_size": True,
                  "force_image_size": image, "min_dynamic_patch": 1, "max_dynamic_patch": max_tiles, "ps_version": "v2", "select_layer": -1,
                  "template": "internlm2-chat", "use_thumbnail": True, "torch_dtype": dtype,
                  "llm_config": {**text, "architectures": ["InternLM2ForCausalLM"], "bias": False, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
                  "vision_config": {**vision, "qkv_bias": True, "qk_normalization": False}}
        processor |= {"crop_size": image, "do_center_crop": True, "feature_extractor_type": "CLIPFeatureExtractor", "size": image}
    tower = intern_vit(hidden, inner, layers, (image // 14) ** 2 + 1)
    tower += norm("mlp1.0", 4 * hidden, 1.0, 0.1) + linear("mlp1.1", d.hidden, 4 * hidden, 1.5, 0.1) + linear("mlp1.3", d.hidden, d.hidden, 0.06, 0.01)
    llama = decoder_tensors("language_model.model.", d, 0.0) + linear("language_model.lm_head", d.rows, d.hidden)
    tensors = [n for t in tower for n in native_vit(t)] + llama if native else tower + [f for t in llama for f in fused(t, d)]
    base, silent = "language_model.model.", [0, 1, 2, *range(min(added.values()), d.rows)]
    if native:
        planting = Planting(base + "embed_tokens.weight", input_norms(base, d), 1, silent, "language_model.lm_head.weight",
                            "multi_modal_projector.linear_1", 4 * hidden, "multi_modal_projector.linear_2")
    else:
        planting = Planting(base + "tok_embeddings.weight", input_norms(base, d, "attention_norm"), 1, silent, "language_model.output.weight",
                            "mlp1.1", 4 * hidden, "mlp1.3")
    out = finish(name, "internvl", "InternVl", d, planting, dtype, files={"config.json": config, "preprocessor_config.json": processor},
                 copies=["bpe/internlm2/tokenizer.model", "bpe/internlm2/added_tokens.json"], tensors=tensors)
    out["overrides"].append(bytes_damped(planting.head, d))
    return out


def clip_like(base: str, hidden: int, inner: int, layers: int) -> list[dict]:
    """Encoder layers of CLIP and SigLIP."""
    tensors = []
    for i in range(layers):
        layer = f"{base}encoder.layers.{i}."
        for part in ("q_proj", "k_proj", "v_proj"):
            tensors += linear(layer + "self_attn." + part, hidden, hidden, 1.5, 0.1)
        tensors += linear(layer + "self_attn.out_proj", hidden, hidden, 0.04, 0.005)
        tensors += linear(layer + "mlp.fc1", inner, hidden, 1.2, 0.1) + linear(layer + "mlp.fc2", hidden, inner, 0.12, 0.005)
        tensors += norm(layer + "layer_norm1", hidden, 1.0, 0.1) + norm(layer + "layer_norm2", hidden, 1.0, 0.1)
    return tensors + norm(base + "post_layernorm", hidden, 1.0, 0.1)


def llama_config(d: Decoder, **more) -> dict:
    return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": d.rows, "hidden_size": d.hidden, "intermediate_size": d.inner,
            "num_hidden_layers": d.layers, "num_attention_heads": d.heads, "num_key_value_heads": d.kv_heads, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 1024, "rope_theta": 1e4, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
            "tie_word_embeddings": False, **more}


def bytes_damped(head: str, d: Decoder) -> dict:
    return override(head, 3 * d.hidden, 256 * d.hidden, multiply=0.25)


def vila15(name: str, llama3: bool, image: int, patch: int, dtype: str = "float32") -> dict:
    """VILA-1.5 as published, a folder for each part; Llama-2's tokenizer or Llama-3's."""
    d = replace(WIDE, rows=576) if llama3 else replace(NARROW, rows=512)
    hidden, inner, layers = 48, 96, 4
    text = llama_config(d, torch_dtype=dtype, **({"rope_theta": 5e5} if llama3 else {"max_position_embeddings": 200, "model_max_length": 500}))
    vision = {"model_type": "siglip_vision_model", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": 3,
              "image_size": image, "patch_size": patch, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
    config = {"model_type": "llava_llama", "architectures": ["LlavaLlamaModel"], "image_aspect_ratio": "resize", "mm_hidden_size": hidden,
              "mm_vision_select_feature": "cls_patch", "mm_vision_select_layer": -2, "mm_projector": "mlp_downsample", "model_dtype": "torch." + dtype}
    tower, side = "vision_tower/vision_model.", image // patch
    tensors = [entry(tower + "embeddings.patch_embedding.weight", [hidden, 3, patch, patch], uniform(STREAM, 3 * patch * patch)),
               entry(tower + "embeddings.patch_embedding.bias", [hidden], uniform(STREAM / 4)),
               entry(tower + "embeddings.position_embedding.weight", [side * side, hidden], uniform(STREAM / 2))]
    tensors += clip_like(tower, hidden, inner, layers)
    tensors += norm("mm_projector/layers.1", 4 * hidden, 1.0, 0.1) + linear("mm_projector/layers.2", d.hidden, 4 * hidden, 1.5, 0.1)
    tensors += linear("mm_projector/layers.4", d.hidden, d.hidden, 0.06, 0.01) + decoder_tensors("llm/model.", d, 0.0)
    tensors += linear("llm/lm_head", d.rows, d.hidden)
    files = {"config.json": config, "llm/config.json": text, "vision_tower/config.json": vision, "mm_projector/config.json": {"mm_projector_type": "mlp_downsample"},
             "vision_tower/preprocessor_config.json": {"do_resize": True, "size": {"height": image, "width": image}, "resample": 3, "image_mean": [0.5] * 3,
                                                       "image_std": [0.5] * 3, "rescale_factor": 1 / 255, "image_processor_type": "SiglipImageProcessor"}}
    special = [0, 1, 2]
    if llama3:
        ids = Tokenizer.from_file(str(ROOT / "bpe/llama3/tokenizer.json")).token_to_id
        special = [ids(t) for t in bpe.LLAMA3_SPECIAL]
        text["eos_token_id"] = ids("<|end_of_text|>")
        entries = {str(ids(t)): {"content": t, "special": True, "normalized": False} for t in bpe.LLAMA3_SPECIAL}
        files["llm/tokenizer_config.json"] = {"added_tokens_decoder": entries}
    planting = Planting("llm/model.embed_tokens.weight", input_norms("llm/model.", d), special[0] if llama3 else 1, special, "llm/lm_head.weight",
                        "mm_projector/layers.2", 4 * hidden, "mm_projector/layers.4")
    copies = ["bpe/llama3/tokenizer.json"] if llama3 else ["tokenizer/tokenizer.model", "tokenizer/original/tokenizer_config.json"]
    out = finish(name, "vila", "Vila15", d, planting, dtype, files=files, copies=copies, copies_to="llm", tensors=tensors)
    if not llama3:
        out["overrides"].append(bytes_damped("llm/lm_head.weight", d))
    return out


def vila1(name: str, inside: bool, image: int) -> dict:
    """VILA v1: a LLaVA in the original layout on Llama-2, without a row for <image>; the tower inside, or in a folder beside it."""
    d = replace(WIDE if inside else NARROW, rows=512)
    hidden, inner, layers = 64, 128, 3
    vision = {"model_type": "clip_vision_model", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": 4,
              "image_size": image, "patch_size": 14, "hidden_act": "quick_gelu", "projection_dim": 32}
    config = {**llama_config(d), "model_type": "llava_llama", "architectures": ["LlavaLlamaForCausalLM"], "image_aspect_ratio": "pad",
              "mm_hidden_size": hidden, "mm_projector_type": "mlp2x_gelu", "mm_use_im_patch_token": False, "mm_use_im_start_end": False,
              "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2, "mm_vision_tower": "clip", "torch_dtype": "float32"}
    tower = "model.vision_tower.vision_tower.vision_model." if inside else "clip/vision_model."
    tokens = (image // 14) ** 2 + 1
    tensors = [entry(tower + "embeddings.class_embedding", [hidden], uniform(1.0)),
               entry(tower + "embeddings.patch_embedding.weight", [hidden, 3, 14, 14], uniform(1.0, 3 * 14 * 14)),
               entry(tower + "embeddings.position_embedding.weight", [tokens, hidden], uniform(0.3))]
    tensors += norm(tower + "pre_layrnorm", hidden, 0.04, 0.005) + clip_like(tower, hidden, inner, layers)
    tensors += linear("model.mm_projector.0", d.hidden, hidden, 14.0, 0.1) + linear("model.mm_projector.2", d.hidden, d.hidden, 0.06, 0.01)
    tensors += decoder_tensors("model.", d, 0.0) + linear("lm_head", d.rows, d.hidden)
    processor = {"crop_size": {"height": image, "width": image}, "do_center_crop": True, "do_normalize": True, "do_resize": True, "image_mean": CLIP_MEAN,
                 "image_std": CLIP_STD, "resample": 3, "size": {"shortest_edge": image}, "feature_extractor_type": "CLIPFeatureExtractor"}
    planting = Planting("model.embed_tokens.weight", input_norms("model.", d), 1, [0, 1, 2], "lm_head.weight", "model.mm_projector.0", hidden,
                        "model.mm_projector.2")
    out = finish(name, "llava", "Vila1", d, planting, copies=["tokenizer/tokenizer.model", "tokenizer/original/tokenizer_config.json"], tensors=tensors,
                 files={"config.json": config, "clip/config.json": vision, "clip/preprocessor_config.json": processor})
    out["overrides"].append(bytes_damped("lm_head.weight", d))
    return out


def all_cases() -> list[dict]:
    return [qwen2_vl("qwen_flat", False, 2, 64, 2), qwen2_vl("qwen_tied", True, 3, 80, 4),
            internvl("internvl_small", 56, 6, WIDE), internvl("internvl_large", 84, 12, NARROW), internvl("internvl_native", 56, 4, NARROW, native=True),
            vila15("vila15_llama2", False, 70, 14), vila15("vila15_llama3", True, 56, 8), vila1("vila1_inside", True, 70), vila1("vila1_folder", False, 56),
            qwen2_vl("qwen_bf16", False, 2, 64, 2, "bfloat16"), internvl("internvl_bf16", 56, 6, WIDE, dtype="bfloat16"),
            vila15("vila15_fp16", True, 56, 8, "float16")]


def published(case: dict) -> dict:
    """What goes into the manifest."""
    return json.loads(json.dumps({k: v for k, v in case.items() if not k.startswith("_")}))
