"""The tiny models: their published files, their tensors, and what is planted in them."""

import math

import numpy as np

from .tokenizer import IMAGE_ID, PAD_ID

ROWS = 520  # embedding and head rows: 512 pieces, <image>, <pad>, padded to a multiple of 8
BYTE_PIECES = (3, 259)
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]

# One row per case. sink_dims[0] carries the massive values of BOS and of the visual tokens, the last one (negative) those of
# text_sinks, pieces that stand for the "." or newline sinks of large models.
SHAPES = {
    "mha": dict(hidden=512, inner=640, layers=5, heads=8, kv_heads=8, theta=10000.0, rms_eps=1e-5, sink_dims=[137, 301],
                clip=dict(hidden=64, inner=160, layers=3, heads=4, image=70, patch=14, act="quick_gelu"),
                massive=64.0, unit=478, unit_bias=-20.0, unit_gain=16.0, tie=False, spelling="old", layout="hf"),
    "gqa": dict(hidden=448, inner=576, layers=4, heads=14, kv_heads=2, theta=10000.0, rms_eps=1e-5, sink_dims=[29],
                clip=dict(hidden=80, inner=192, layers=3, heads=5, image=84, patch=14, act="quick_gelu"),
                massive=96.0, unit=412, unit_bias=-13.0, unit_gain=24.0, tie=False, spelling="old", layout="original"),
    "odd": dict(hidden=480, inner=608, layers=4, heads=6, kv_heads=3, theta=500000.0, rms_eps=1e-6, sink_dims=[401, 12],
                clip=dict(hidden=72, inner=144, layers=4, heads=3, image=48, patch=8, act="gelu"),
                massive=80.0, unit=15, unit_bias=-8.0, unit_gain=16.0, tie=True, spelling="new", layout="hf"),
}
HALF_SHAPE = dict(SHAPES["mha"], layers=4)
SHAPES["mha_bf16"] = dict(HALF_SHAPE, dtype="bfloat16", unit=167, unit_bias=-10.0)
SHAPES["mha_fp16"] = dict(HALF_SHAPE, dtype="float16", unit=31, unit_bias=-7.0)


def f32(value: float) -> float:
    """The nearest float32, as a number that prints so that it reads back exactly."""
    return float(np.float32(value))


def uniform(gain: float, fan_in: int = 1) -> float:
    """The scale of a uniform variable whose standard deviation is gain / sqrt(fan_in)."""
    return f32(gain * math.sqrt(3.0 / fan_in))


def entry(name: str, shape: list[int], scale: float, offset: float = 0.0) -> dict:
    return {"name": name, "shape": shape, "scale": scale, "offset": f32(offset)}


def linear(name: str, rows: int, columns: int, gain: float = 1.0, bias: float = 0.0) -> list[dict]:
    """A weight of unit gain times `gain`, and where `bias` is given a bias of that standard deviation."""
    out = [entry(name + ".weight", [rows, columns], uniform(gain, columns))]
    return out + ([entry(name + ".bias", [rows], uniform(bias))] if bias else [])


def norm(name: str, width: int, centre: float, bias: float) -> list[dict]:
    out = [entry(name + ".weight", [width], f32(0.2 * centre), centre)]
    return out + ([entry(name + ".bias", [width], uniform(bias))] if bias else [])


def vision_tensors(shape: dict) -> list[dict]:
    """The CLIP tower. pre_layrnorm scales the residual stream down, so that the epsilon of every later norm is visible."""
    clip, base = shape["clip"], "vision_tower.vision_model."
    width, inner, patch = clip["hidden"], clip["inner"], clip["patch"]
    tokens = (clip["image"] // patch) ** 2 + 1
    out = [entry(base + "embeddings.class_embedding", [width], uniform(1.0)),
           entry(base + "embeddings.patch_embedding.weight", [width, 3, patch, patch], uniform(1.0, 3 * patch * patch)),
           entry(base + "embeddings.position_embedding.weight", [tokens, width], uniform(0.3))]
    out += norm(base + "pre_layrnorm", width, 0.06, 0.01)
    for i in range(clip["layers"]):
        layer = f"{base}encoder.layers.{i}."
        for name in ("q_proj", "k_proj"):
            out += linear(layer + "self_attn." + name, width, width, 1.5, 0.1)
        out += linear(layer + "self_attn.v_proj", width, width, 1.0, 0.1)
        out += linear(layer + "self_attn.out_proj", width, width, 0.1, 0.01)
        out += linear(layer + "mlp.fc1", inner, width, 1.5, 0.1) + linear(layer + "mlp.fc2", width, inner, 0.08, 0.01)
        out += norm(layer + "layer_norm1", width, 1.0, 0.1) + norm(layer + "layer_norm2", width, 1.0, 0.1)
    return out + norm(base + "post_layernorm", width, 1.0, 0.1)


def text_tensors(shape: dict) -> list[dict]:
    """The decoder. Embeddings have standard deviation 1/sqrt(D) and blocks add little, so that the RMS epsilon is visible."""
    width, inner, base = shape["hidden"], shape["inner"], "language_model.model."
    head_dim = width // shape["heads"]
    out = [entry(base + "embed_tokens.weight", [ROWS, width], uniform(0.7 if shape["tie"] else 1.0, width))]
    for i in range(shape["layers"]):
        layer = f"{base}layers.{i}."
        out += linear(layer + "self_attn.q_proj", shape["heads"] * head_dim, width, 1.5)
        out += linear(layer + "self_attn.k_proj", shape["kv_heads"] * head_dim, width)
        out += linear(layer + "self_attn.v_proj", shape["kv_heads"] * head_dim, width)
        out += linear(layer + "self_attn.o_proj", width, shape["heads"] * head_dim, 0.2)
        out += linear(layer + "mlp.gate_proj", inner, width) + linear(layer + "mlp.up_proj", inner, width)
        out += linear(layer + "mlp.down_proj", width, inner, 0.3)
        out += norm(layer + "input_layernorm", width, 1.0, 0.0) + norm(layer + "post_attention_layernorm", width, 1.0, 0.0)
    if shape["tie"]:  # signs at random, or every token would be most like itself
        return out + [entry(base + "norm.weight", [width], uniform(1.4))]
    return out + norm(base + "norm", width, 1.0, 0.0) + linear("language_model.lm_head", ROWS, width)


def tensors(shape: dict) -> list[dict]:
    width, clip = shape["hidden"], shape["clip"]
    projector = linear("multi_modal_projector.linear_1", width, clip["hidden"], 20.0, 0.2)
    projector += linear("multi_modal_projector.linear_2", width, width, 0.06, 0.01)
    return vision_tensors(shape) + projector + text_tensors(shape)


def override(tensor: str, begin: int, count: int = 1, stride: int = 1, **what: float) -> dict:
    return {"tensor": tensor, "begin": begin, "count": count, "stride": stride, **what}


def overrides(shape: dict) -> list[dict]:
    """What is planted: massive values, and head rows that are never the largest (specials zero, byte pieces damped)."""
    width, dims = shape["hidden"], shape["sink_dims"]
    embed = "language_model.model.embed_tokens.weight"
    head = embed if shape["tie"] else "language_model.lm_head.weight"
    out = [override(head, row * width, count * width, set=0.0) for row, count in ((0, 3), (IMAGE_ID, ROWS - IMAGE_ID))]
    out.append(override(head, BYTE_PIECES[0] * width, (BYTE_PIECES[1] - BYTE_PIECES[0]) * width, multiply=0.25))
    out.append(override(embed, 1 * width + dims[0], set=shape["massive"]))
    out += [override(embed, piece * width + dims[-1], set=-shape["massive"]) for piece in text_sinks(shape)]
    out.append(override("multi_modal_projector.linear_1.weight", shape["unit"] * shape["clip"]["hidden"],
                        shape["clip"]["hidden"], multiply=4.0))
    out.append(override("multi_modal_projector.linear_1.bias", shape["unit"], set=shape["unit_bias"]))
    out.append(override("multi_modal_projector.linear_2.weight", dims[0] * width + shape["unit"], set=shape["unit_gain"]))
    for layer in range(shape["layers"]):  # as in large models, the norm damps the massive dimensions
        name = f"language_model.model.layers.{layer}.input_layernorm.weight"
        out += [override(name, dim, set=0.5) for dim in dims]
    if shape["tie"]:
        out += [override("language_model.model.norm.weight", dim, set=0.0) for dim in dims]
    return out


def text_sinks(shape: dict) -> list[int]:
    """The newline byte piece, and every 23rd learnt piece: about one generated token in twenty becomes a text sink."""
    return [13] + list(range(270 + shape["heads"], 512, 23))


def vision_config(shape: dict) -> dict:
    clip = shape["clip"]
    return {"model_type": "clip_vision_model", "hidden_size": clip["hidden"], "intermediate_size": clip["inner"],
            "num_hidden_layers": clip["layers"], "num_attention_heads": clip["heads"], "image_size": clip["image"],
            "patch_size": clip["patch"], "projection_dim": 32, "hidden_act": clip["act"], "vocab_size": 32000}


def hf_config(shape: dict) -> dict:
    """config.json of layouts A, B, C: as published (`old`), or as transformers 5 writes it (`new`)."""
    text = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": shape["hidden"],
            "intermediate_size": shape["inner"], "num_hidden_layers": shape["layers"],
            "num_attention_heads": shape["heads"], "num_key_value_heads": shape["kv_heads"],
            "max_position_embeddings": 512, "rms_norm_eps": shape["rms_eps"], "vocab_size": ROWS, "hidden_act": "silu"}
    out = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "ignore_index": -100,
           "pad_token_id": PAD_ID, "projector_hidden_act": "gelu", "tie_word_embeddings": shape["tie"],
           "vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
    dtype = shape.get("dtype", "float32")
    if shape["spelling"] == "new":
        text.update(rope_parameters={"rope_theta": shape["theta"], "rope_type": "default"}, dtype=dtype, bos_token_id=1,
                    eos_token_id=2, attention_bias=False, mlp_bias=False, head_dim=shape["hidden"] // shape["heads"])
        out.update(image_token_id=IMAGE_ID, dtype=dtype, transformers_version="5.17.0",
                   image_seq_length=visual_tokens(shape), multimodal_projector_bias=True)
    else:
        text.update(rope_theta=shape["theta"], rope_scaling=None, torch_dtype=dtype)
        out.update(image_token_index=IMAGE_ID, torch_dtype=dtype, transformers_version="4.36.0.dev0", vocab_size=ROWS)
    return {**out, "text_config": text, "vision_config": vision_config(shape)}


def original_config(shape: dict) -> dict:
    """config.json of the original LLaVA layout: a flat Llama config; the tower's own config lies in a folder of its own."""
    return {"architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava", "hidden_size": shape["hidden"],
            "intermediate_size": shape["inner"], "num_hidden_layers": shape["layers"],
            "num_attention_heads": shape["heads"], "num_key_value_heads": shape["kv_heads"], "hidden_act": "silu",
            "max_position_embeddings": 512, "rms_norm_eps": shape["rms_eps"], "rope_scaling": None,
            "vocab_size": IMAGE_ID, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
            "tie_word_embeddings": False, "torch_dtype": shape.get("dtype", "float32"), "use_cache": True,
            "image_aspect_ratio": "pad", "freeze_mm_mlp_adapter": False, "mm_hidden_size": shape["clip"]["hidden"],
            "mm_projector_type": "mlp2x_gelu", "mm_use_im_patch_token": False, "mm_use_im_start_end": False,
            "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2, "mm_vision_tower": "clip",
            "transformers_version": "4.31.0"}


def visual_tokens(shape: dict) -> int:
    return (shape["clip"]["image"] // shape["clip"]["patch"]) ** 2


def preprocessor_config(shape: dict) -> dict:
    size = shape["clip"]["image"]
    return {"crop_size": {"height": size, "width": size}, "do_center_crop": True, "do_convert_rgb": True,
            "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": CLIP_MEAN, "image_std": CLIP_STD,
            "image_processor_type": "CLIPImageProcessor", "resample": 3, "rescale_factor": 0.00392156862745098,
            "size": {"shortest_edge": size}}


def build(name: str) -> dict:
    """The manifest's entry of one case, without its runs."""
    shape = SHAPES[name]
    files = ["tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]
    out = {"name": name, "seed_name": shape.get("seed_name", name), "dtype": shape.get("dtype", "float32"),
           "layout": shape["layout"], "sink_dims": shape["sink_dims"], "image_token_id": IMAGE_ID,
           "visual_tokens_per_image": visual_tokens(shape), "vocab_rows": ROWS, "config": hf_config(shape),
           "preprocessor_config": preprocessor_config(shape), "tokenizer_files": ["tokenizer/" + f for f in files],
           "generation_config": {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": PAD_ID,
                                 "transformers_version": "4.36.0.dev0"}}
    if shape["layout"] == "original":
        files = ["tokenizer.model", "original/tokenizer_config.json", "original/special_tokens_map.json"]
        out["original"] = {"config": original_config(shape), "rows": IMAGE_ID, "image_token_id": -200,
                           "vision_config": vision_config(shape), "tokenizer_files": ["tokenizer/" + f for f in files],
                           "generation_config": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
                                                 "transformers_version": "4.31.0"}}
    return {**out, "tensors": tensors(shape), "overrides": overrides(shape)}
