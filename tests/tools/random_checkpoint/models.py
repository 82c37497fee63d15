"""Names, shapes and configurations of the published models."""

from dataclasses import dataclass, replace
from typing import Callable

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Decoder:
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    rows: int  # of the vocabulary
    bias: bool = False  # of q, k, v
    tied: bool = False


@dataclass(frozen=True)
class Tower:
    """A ViT with square pictures of `image` pixels, 0 where they have any size."""

    hidden: int
    inner: int
    layers: int
    heads: int
    image: int
    patch: int = 14


@dataclass(frozen=True)
class Checkpoint:
    dtype: str  # as torch spells it
    parts: dict[str, Shapes]  # tensors by folder, "" the checkpoint's own
    files: dict[str, dict]  # JSON by path
    tokenizer_folder: str = ""


@dataclass(frozen=True)
class Model:
    decoder: Decoder
    tokenizer: str  # one of tokenizers.KINDS
    build: Callable[[Decoder, dict[str, int]], Checkpoint]

    def with_layers(self, layers: int) -> "Model":
        return replace(self, decoder=replace(self.decoder, layers=layers))


CLIP = Tower(1024, 4096, 24, 16, image=336)
SIGLIP = Tower(1152, 4304, 27, 16, image=384)
INTERN_VIT = Tower(1024, 4096, 24, 16, image=448)
QWEN2_VIT = Tower(1280, 5120, 32, 16, image=0)


def linear(name: str, out: int, inputs: int, bias: bool = True) -> Shapes:
    return {name + ".weight": (out, inputs), **({name + ".bias": (out,)} if bias else {})}


def layer_norm(name: str, size: int) -> Shapes:
    return {name + ".weight": (size,), name + ".bias": (size,)}


def llama_tensors(scope: str, size: Decoder) -> Shapes:
    """Llama's and Qwen2's names: `scope`model.*, `scope`lm_head.weight."""
    kv = size.hidden // size.heads * size.kv_heads
    out: Shapes = {scope + "model.embed_tokens.weight": (size.rows, size.hidden)}
    for i in range(size.layers):
        layer = f"{scope}model.layers.{i}."
        out |= linear(layer + "self_attn.q_proj", size.hidden, size.hidden, size.bias)
        out |= linear(layer + "self_attn.k_proj", kv, size.hidden, size.bias) | linear(layer + "self_attn.v_proj", kv, size.hidden, size.bias)
        out |= linear(layer + "self_attn.o_proj", size.hidden, size.hidden, False)
        out |= linear(layer + "mlp.gate_proj", size.inner, size.hidden, False) | linear(layer + "mlp.up_proj", size.inner, size.hidden, False)
        out |= linear(layer + "mlp.down_proj", size.hidden, size.inner, False)
        out[layer + "input_layernorm.weight"] = out[layer + "post_attention_layernorm.weight"] = (size.hidden,)
    out[scope + "model.norm.weight"] = (size.hidden,)
    return out if size.tied else out | {scope + "lm_head.weight": (size.rows, size.hidden)}


def internlm2_tensors(size: Decoder) -> Shapes:
    base, head = "language_model.model.", size.hidden // size.heads
    out: Shapes = {base + "tok_embeddings.weight": (size.rows, size.hidden)}
    for i in range(size.layers):
        layer = f"{base}layers.{i}."
        out |= linear(layer + "attention.wqkv", (size.heads + 2 * size.kv_heads) * head, size.hidden, False)
        out |= linear(layer + "attention.wo", size.hidden, size.hidden, False)
        out |= linear(layer + "feed_forward.w1", size.inner, size.hidden, False) | linear(layer + "feed_forward.w3", size.inner, size.hidden, False)
        out |= linear(layer + "feed_forward.w2", size.hidden, size.inner, False)
        out[layer + "attention_norm.weight"] = out[layer + "ffn_norm.weight"] = (size.hidden,)
    return out | {base + "norm.weight": (size.hidden,), "language_model.output.weight": (size.rows, size.hidden)}


def clip_layers(base: str, size: Tower) -> Shapes:
    """What CLIP and SigLIP call alike."""
    out: Shapes = {}
    for i in range(size.layers):
        layer = f"{base}encoder.layers.{i}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            out |= linear(f"{layer}self_attn.{name}", size.hidden, size.hidden)
        out |= linear(layer + "mlp.fc1", size.inner, size.hidden) | linear(layer + "mlp.fc2", size.hidden, size.inner)
        out |= layer_norm(layer + "layer_norm1", size.hidden) | layer_norm(layer + "layer_norm2", size.hidden)
    return out | layer_norm(base + "post_layernorm", size.hidden)


def patch_shape(size: Tower) -> tuple[int, ...]:
    return (size.hidden, 3, size.patch, size.patch)


def clip_tensors(base: str, size: Tower) -> Shapes:
    places = (size.image // size.patch) ** 2 + 1
    return {base + "embeddings.class_embedding": (size.hidden,), base + "embeddings.patch_embedding.weight": patch_shape(size),
            base + "embeddings.position_embedding.weight": (places, size.hidden), **layer_norm(base + "pre_layrnorm", size.hidden),
            **clip_layers(base, size)}


def siglip_tensors(base: str, size: Tower) -> Shapes:
    """With the pooling head, which VILA's files hold and nobody uses."""
    head, width = base + "head.", size.hidden
    return {base + "embeddings.patch_embedding.weight": patch_shape(size), base + "embeddings.patch_embedding.bias": (width,),
            base + "embeddings.position_embedding.weight": ((size.image // size.patch) ** 2, width), **clip_layers(base, size),
            head + "probe": (1, 1, width), head + "attention.in_proj_weight": (3 * width, width), head + "attention.in_proj_bias": (3 * width,),
            **linear(head + "attention.out_proj", width, width), **layer_norm(head + "layernorm", width),
            **linear(head + "mlp.fc1", size.inner, width), **linear(head + "mlp.fc2", width, size.inner)}


def fused_block(layer: str, size: Tower) -> Shapes:
    """What InternViT's and Qwen2-VL's layers call alike."""
    return {**layer_norm(layer + "norm1", size.hidden), **layer_norm(layer + "norm2", size.hidden),
            **linear(layer + "attn.qkv", 3 * size.hidden, size.hidden), **linear(layer + "attn.proj", size.hidden, size.hidden),
            **linear(layer + "mlp.fc1", size.inner, size.hidden), **linear(layer + "mlp.fc2", size.hidden, size.inner)}


def intern_vit_tensors(size: Tower) -> Shapes:
    base, places = "vision_model.embeddings.", (size.image // size.patch) ** 2 + 1
    out: Shapes = {base + "class_embedding": (1, 1, size.hidden), base + "position_embedding": (1, places, size.hidden),
                   base + "patch_embedding.weight": patch_shape(size), base + "patch_embedding.bias": (size.hidden,)}
    for i in range(size.layers):
        layer = f"vision_model.encoder.layers.{i}."
        out |= fused_block(layer, size) | {layer + "ls1": (size.hidden,), layer + "ls2": (size.hidden,)}
    return out


def qwen2_vit_tensors(size: Tower, text_width: int) -> Shapes:
    merged = 4 * size.hidden
    out: Shapes = {"visual.patch_embed.proj.weight": (size.hidden, 3, 2, size.patch, size.patch)}
    for i in range(size.layers):
        out |= fused_block(f"visual.blocks.{i}.", size)
    out |= layer_norm("visual.merger.ln_q", size.hidden) | linear("visual.merger.mlp.0", merged, merged)
    return out | linear("visual.merger.mlp.2", text_width, merged)


def decoder_config(size: Decoder, **more) -> dict:
    return {"hidden_size": size.hidden, "intermediate_size": size.inner, "num_hidden_layers": size.layers, "num_attention_heads": size.heads,
            "num_key_value_heads": size.kv_heads, "vocab_size": size.rows, "hidden_act": "silu", "tie_word_embeddings": size.tied, **more}


def tower_config(size: Tower, **more) -> dict:
    return {"hidden_size": size.hidden, "intermediate_size": size.inner, "num_hidden_layers": size.layers, "num_attention_heads": size.heads,
            "image_size": size.image, "patch_size": size.patch, **more}


def processor_config(mean: list[float], std: list[float], **more) -> dict:
    return {"do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": mean, "image_std": std,
            "resample": 3, "rescale_factor": 1 / 255, **more}


def clip_processor() -> dict:
    side = CLIP.image
    return processor_config(CLIP_MEAN, CLIP_STD, crop_size={"height": side, "width": side}, do_center_crop=True, size={"shortest_edge": side},
                            image_processor_type="CLIPImageProcessor")


def llava(size: Decoder, ids: dict[str, int]) -> Checkpoint:
    """LLaVA-1.5 as llava-hf publishes it."""
    scope, projector = "language_model.", "multi_modal_projector."
    tensors = llama_tensors(scope, size) | clip_tensors("vision_tower.vision_model.", CLIP)
    tensors |= linear(projector + "linear_1", size.hidden, CLIP.hidden) | linear(projector + "linear_2", size.hidden, size.hidden)
    text = decoder_config(size, architectures=["LlamaForCausalLM"], max_position_embeddings=4096, model_type="llama", rms_norm_eps=1e-5,
                          torch_dtype="float16")
    config = {"architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100, "image_token_index": ids["<image>"],
              "model_type": "llava", "pad_token_id": ids["<pad>"], "projector_hidden_act": "gelu", "text_config": text,
              "tie_word_embeddings": False, "torch_dtype": "float16", "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
              "vision_config": tower_config(CLIP, model_type="clip_vision_model", projection_dim=768)}
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": ids["<pad>"]}
    return Checkpoint("float16", {"": tensors}, {"config.json": config, "preprocessor_config.json": clip_processor(),
                                                 "generation_config.json": generation})


def vila(size: Decoder, _: dict[str, int]) -> Checkpoint:
    """VILA v1: LLaVA's original layout, CLIP in a folder of its own."""
    projector = "model.mm_projector."
    tensors = llama_tensors("", size) | linear(projector + "0", size.hidden, CLIP.hidden) | linear(projector + "2", size.hidden, size.hidden)
    config = decoder_config(size, architectures=["LlavaLlamaForCausalLM"], model_type="llava_llama", max_position_embeddings=4096, rms_norm_eps=1e-5,
                            bos_token_id=1, eos_token_id=2, pad_token_id=0, image_aspect_ratio="pad", mm_hidden_size=CLIP.hidden,
                            mm_projector_type="mlp2x_gelu", mm_use_im_patch_token=False, mm_use_im_start_end=False, mm_vision_select_feature="patch",
                            mm_vision_select_layer=-2, mm_vision_tower="openai/clip-vit-large-patch14-336", torch_dtype="float16")
    tower = {"model_type": "clip", "vision_config": tower_config(CLIP, model_type="clip_vision_model", hidden_act="quick_gelu")}
    return Checkpoint("float16", {"": tensors, "vision_tower": clip_tensors("vision_model.", CLIP)},
                      {"config.json": config, "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
                       "vision_tower/config.json": tower, "vision_tower/preprocessor_config.json": clip_processor()})


def vila15(size: Decoder, ids: dict[str, int]) -> Checkpoint:
    """VILA-1.5 on Llama-3: a folder for each part."""
    merged, side = 4 * SIGLIP.hidden, SIGLIP.image
    projector = layer_norm("layers.1", merged) | linear("layers.2", size.hidden, merged) | linear("layers.4", size.hidden, size.hidden)
    llm = decoder_config(size, architectures=["LlamaForCausalLM"], model_type="llama", max_position_embeddings=8192, model_max_length=4096,
                         rms_norm_eps=1e-5, rope_theta=500000.0, bos_token_id=ids["<|begin_of_text|>"], eos_token_id=ids["<|end_of_text|>"],
                         torch_dtype="bfloat16")
    config = {"architectures": ["LlavaLlamaModel"], "model_type": "llava_llama", "image_aspect_ratio": "resize", "mm_hidden_size": SIGLIP.hidden,
              "mm_projector": "mlp_downsample", "mm_vision_select_feature": "cls_patch", "mm_vision_select_layer": -2, "model_dtype": "torch.bfloat16"}
    tower = tower_config(SIGLIP, model_type="siglip_vision_model", hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6)
    processor = processor_config([0.5] * 3, [0.5] * 3, size={"height": side, "width": side}, image_processor_type="SiglipImageProcessor")
    generation = {"bos_token_id": ids["<|begin_of_text|>"], "eos_token_id": ids["<|end_of_text|>"]}
    return Checkpoint("bfloat16", {"llm": llama_tensors("", size), "vision_tower": siglip_tensors("vision_model.", SIGLIP), "mm_projector": projector},
                      {"config.json": config, "llm/config.json": llm, "llm/generation_config.json": generation, "vision_tower/config.json": tower,
                       "vision_tower/preprocessor_config.json": processor,
                       "mm_projector/config.json": {"mm_projector_type": "mlp_downsample", "model_type": "v2l_projector"}}, tokenizer_folder="llm")


def qwen2_vl(size: Decoder, ids: dict[str, int]) -> Checkpoint:
    tensors = llama_tensors("", size) | qwen2_vit_tensors(QWEN2_VIT, size.hidden)
    vision = {"depth": QWEN2_VIT.layers, "embed_dim": QWEN2_VIT.hidden, "hidden_size": size.hidden, "in_chans": 3, "mlp_ratio": 4,
              "num_heads": QWEN2_VIT.heads, "patch_size": QWEN2_VIT.patch, "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2}
    config = decoder_config(size, architectures=["Qwen2VLForConditionalGeneration"], model_type="qwen2_vl", max_position_embeddings=32768,
                            rms_norm_eps=1e-6, rope_theta=1e6, rope_scaling={"type": "mrope", "mrope_section": [16, 24, 24]},
                            bos_token_id=ids["<|endoftext|>"], eos_token_id=ids["<|im_end|>"], image_token_id=ids["<|image_pad|>"],
                            vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"], use_sliding_window=False,
                            sliding_window=32768, torch_dtype="bfloat16", vision_config=vision)
    generation = {"bos_token_id": ids["<|endoftext|>"], "do_sample": True, "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
                  "pad_token_id": ids["<|endoftext|>"], "temperature": 0.01, "top_k": 1, "top_p": 0.001}
    processor = processor_config(CLIP_MEAN, CLIP_STD, min_pixels=3136, max_pixels=12845056, patch_size=14, temporal_patch_size=2, merge_size=2,
                                 image_processor_type="Qwen2VLImageProcessor")
    return Checkpoint("bfloat16", {"": tensors}, {"config.json": config, "generation_config.json": generation, "preprocessor_config.json": processor})


def internvl2(size: Decoder, ids: dict[str, int]) -> Checkpoint:
    side, merged = INTERN_VIT.image, 4 * INTERN_VIT.hidden
    tensors = internlm2_tensors(size) | intern_vit_tensors(INTERN_VIT) | layer_norm("mlp1.0", merged)
    tensors |= linear("mlp1.1", size.hidden, merged) | linear("mlp1.3", size.hidden, size.hidden)
    llm = decoder_config(size, architectures=["InternLM2ForCausalLM"], model_type="internlm2", bias=False, bos_token_id=1, eos_token_id=2,
                         pad_token_id=2, max_position_embeddings=32768, rms_norm_eps=1e-5, rope_theta=1000000,
                         rope_scaling={"type": "dynamic", "factor": 2.0}, torch_dtype="bfloat16")
    vision = tower_config(INTERN_VIT, model_type="intern_vit_6b", hidden_act="gelu", norm_type="layer_norm", layer_norm_eps=1e-6, qkv_bias=True,
                          qk_normalization=False)
    config = {"architectures": ["InternVLChatModel"], "model_type": "internvl_chat", "downsample_ratio": 0.5, "dynamic_image_size": True,
              "force_image_size": side, "min_dynamic_patch": 1, "max_dynamic_patch": 12, "ps_version": "v2", "select_layer": -1,
              "template": "internlm2-chat", "use_thumbnail": True, "torch_dtype": "bfloat16", "llm_config": llm, "vision_config": vision}
    processor = processor_config(IMAGENET_MEAN, IMAGENET_STD, crop_size=side, do_center_crop=True, size=side,
                                 feature_extractor_type="CLIPFeatureExtractor")
    return Checkpoint("bfloat16", {"": tensors}, {"config.json": config, "preprocessor_config.json": processor,
                                                  "generation_config.json": {"eos_token_id": [ids["<|im_end|>"], 2]}})


MODELS = {
    "llava-1.5-7b": Model(Decoder(4096, 11008, 32, 32, 32, 32064), "llava", llava),
    "llava-1.5-13b": Model(Decoder(5120, 13824, 40, 40, 40, 32064), "llava", llava),
    "vila-7b": Model(Decoder(4096, 11008, 32, 32, 32, 32000), "llama2", vila),
    "vila-1.5-8b": Model(Decoder(4096, 14336, 32, 32, 8, 128256), "llama3", vila15),
    "qwen2-vl-7b": Model(Decoder(3584, 18944, 28, 28, 4, 152064, bias=True), "qwen2", qwen2_vl),
    "qwen2-vl-2b": Model(Decoder(1536, 8960, 28, 12, 2, 151936, bias=True, tied=True), "qwen2", qwen2_vl),
    "internvl2-8b": Model(Decoder(4096, 14336, 32, 32, 8, 92553), "internlm2", internvl2),
}
