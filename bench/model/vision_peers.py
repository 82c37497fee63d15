"""The vision towers that bench_model.py times: transformers' towers and projectors with random weights, and one picture."""

import dataclasses
import typing

import torch
from torch import nn
from transformers import (CLIPVisionConfig, InternVLConfig, InternVLModel, InternVLVisionConfig, LlamaConfig, LlavaConfig,
                          LlavaModel, Qwen2Config, Qwen2VLConfig, Qwen2VLModel)

# libvar's numbers for TowerKind and Activation (libvar/src/vision/config.h).
CLIP, INTERN_VIT, QWEN2_VL = 0, 2, 3
QUICK_GELU, GELU = 0, 1


@dataclasses.dataclass
class Vision:
    numbers: dict  # libvar's VisionConfig
    tensors: dict  # by libvar's names
    pixels: torch.Tensor
    grid: tuple  # rows and columns of patches, 0 where the tower reads tiles
    features: typing.Callable  # transformers' [visual tokens, D] of the picture


def text_config(make, hidden):
    """A language model beside the tower that is as small as it can be: only its width counts here."""
    return make(hidden_size=hidden, num_hidden_layers=1, intermediate_size=8, vocab_size=8, num_attention_heads=1,
                num_key_value_heads=1, bos_token_id=None, eos_token_id=None)


def llava(hidden, quick):
    width, layers, heads, side = (64, 3, 4, 28) if quick else (1024, 24, 16, 336)
    tower = CLIPVisionConfig(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
                             num_attention_heads=heads, image_size=side, patch_size=14, projection_dim=width)
    config = LlavaConfig(vision_config=tower, text_config=text_config(LlamaConfig, hidden), vision_feature_layer=-2,
                         image_token_index=0)
    numbers = {"tower": CLIP, "num_layers": layers, "layers_to_run": layers - 1, "num_heads": heads, "hidden_size": width,
               "intermediate_size": 4 * width, "image_size": side, "patch_size": 14, "activation": QUICK_GELU}
    return LlavaModel, config, numbers, torch.Size([1, 3, side, side])


def internvl(hidden, quick):
    width, layers, heads, side = (64, 3, 4, 56) if quick else (1024, 24, 16, 448)
    tower = InternVLVisionConfig(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, attention_bias=True,
                                 num_attention_heads=heads, image_size=[side, side], patch_size=[14, 14])
    config = InternVLConfig(vision_config=tower, text_config=text_config(Qwen2Config, hidden), image_token_id=0)
    numbers = {"tower": INTERN_VIT, "num_layers": layers, "layers_to_run": layers, "num_heads": heads, "hidden_size": width,
               "intermediate_size": 4 * width, "image_size": side, "patch_size": 14, "merge_size": 2,
               "layer_norm_eps": 1e-6, "activation": GELU}
    return InternVLModel, config, numbers, torch.Size([1, 3, side, side])


def qwen2_vl(hidden, quick):
    width, layers, heads, side = (64, 2, 4, 4) if quick else (1280, 32, 16, 24)
    config = Qwen2VLConfig(
        vision_config={"depth": layers, "embed_dim": width, "hidden_size": hidden, "num_heads": heads, "mlp_ratio": 4},
        text_config=text_config(Qwen2Config, hidden).to_dict(), image_token_id=0)
    numbers = {"tower": QWEN2_VL, "num_layers": layers, "layers_to_run": layers, "num_heads": heads, "hidden_size": width,
               "intermediate_size": 4 * width, "patch_size": 14, "merge_size": 2, "temporal_patch_size": 2,
               "layer_norm_eps": 1e-6, "activation": QUICK_GELU}
    return Qwen2VLModel, config, numbers, torch.Size([side * side, 3 * 2 * 14 * 14])


def make_vision(name, hidden, dtype, device, quick, seed=1):
    """The tower and projector of a shape, on one picture of noise."""
    maker = {"llava-1.5-7b": llava, "internvl2-8b": internvl, "qwen2-vl-7b": qwen2_vl}[name]
    make, config, numbers, size = maker(hidden, quick)
    config._attn_implementation = "sdpa"
    with torch.device(device):
        model = make(config).to(dtype).eval()
    generator = torch.Generator(device=device).manual_seed(seed)
    for key, weight in model.named_parameters():
        if "norm" in key or "ln_q" in key:
            (nn.init.ones_ if key.endswith("weight") else nn.init.zeros_)(weight)
        elif "lambda" in key:
            weight.fill_(0.1)
        else:
            weight.normal_(0, 0.1 if weight.dim() < 2 else weight[0].numel() ** -0.5, generator=generator)
    pixels = torch.randn(size, generator=generator, device=device)
    grid, inputs = (0, 0), {"pixel_values": pixels.to(dtype)}
    if numbers["tower"] == QWEN2_VL:
        side = int(size[0] ** 0.5)
        grid, inputs["image_grid_thw"] = (side, side), torch.tensor([[1, side, side]], device=device)
    prefix = "vision_tower." if numbers["tower"] == CLIP else None
    tensors = {key.replace("vision_tower.", "vision_tower.vision_model.", 1) if prefix else key: weight.data
               for key, weight in model.named_parameters() if "language_model" not in key}
    return Vision(numbers, tensors, pixels, grid,
                  lambda: torch.cat(list(model.get_image_features(**inputs).pooler_output)).flatten(0, -2))
