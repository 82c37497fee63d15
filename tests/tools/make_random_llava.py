#!/usr/bin/env python3
"""Makes a LLaVA-1.5-shaped checkpoint of random weights in the published sharded layout, in little memory.

For measurements by hand, not part of the tests:

    tests/tools/make_random_llava.py OUT_DIR --tokenizer tests/golden/tokenizer            # the 7B: 14.1 GB
    tests/tools/make_random_llava.py OUT_DIR --tokenizer DIR --size 13b --layers 4         # the 13B's shape, few layers

The tokenizer may be smaller than the vocabulary; `<image>` keeps the id that it has there.
"""

import argparse
import json
import math
import random
import shutil
import struct
from pathlib import Path

SIZES = {"7b": dict(hidden=4096, inner=11008, layers=32, heads=32),
         "13b": dict(hidden=5120, inner=13824, layers=40, heads=40)}
ROWS = 32064
CLIP = dict(hidden=1024, inner=4096, layers=24, heads=16, image=336, patch=14)
SHARD_BYTES = 5_000_000_000
TOKENIZER_FILES = ["tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                   "added_tokens.json"]


def decoder_tensors(hidden: int, inner: int, layers: int) -> dict[str, tuple]:
    base = "language_model.model."
    out = {base + "embed_tokens.weight": (ROWS, hidden)}
    for i in range(layers):
        layer = f"{base}layers.{i}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            out[f"{layer}self_attn.{name}.weight"] = (hidden, hidden)
        out[layer + "mlp.gate_proj.weight"] = out[layer + "mlp.up_proj.weight"] = (inner, hidden)
        out[layer + "mlp.down_proj.weight"] = (hidden, inner)
        out[layer + "input_layernorm.weight"] = out[layer + "post_attention_layernorm.weight"] = (hidden,)
    out[base + "norm.weight"] = (hidden,)
    out["language_model.lm_head.weight"] = (ROWS, hidden)
    return out


def with_bias(name: str, *shape: int) -> dict[str, tuple]:
    return {name + ".weight": shape, name + ".bias": shape[:1]}


def vision_tensors(hidden: int) -> dict[str, tuple]:
    base, width, inner, patch = "vision_tower.vision_model.", CLIP["hidden"], CLIP["inner"], CLIP["patch"]
    out = {base + "embeddings.class_embedding": (width,),
           base + "embeddings.patch_embedding.weight": (width, 3, patch, patch),
           base + "embeddings.position_embedding.weight": ((CLIP["image"] // patch) ** 2 + 1, width)}
    for name in ("pre_layrnorm", "post_layernorm"):
        out |= with_bias(base + name, width)
    for i in range(CLIP["layers"]):
        layer = f"{base}encoder.layers.{i}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            out |= with_bias(f"{layer}self_attn.{name}", width, width)
        out |= with_bias(layer + "mlp.fc1", inner, width) | with_bias(layer + "mlp.fc2", width, inner)
        out |= with_bias(layer + "layer_norm1", width) | with_bias(layer + "layer_norm2", width)
    projector = "multi_modal_projector."
    return out | with_bias(projector + "linear_1", hidden, width) | with_bias(projector + "linear_2", hidden, hidden)


class Pool:
    """Draws of a normal variable as float16 bytes, once for each scale; a tensor is the pool from some place on, repeated."""

    COUNT = 1 << 20

    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        self.draws = [self.rng.gauss(0.0, 1.0) for _ in range(self.COUNT)]
        self.packed = {}

    def bytes_of(self, offset: float, scale: float) -> bytes:
        if (offset, scale) not in self.packed:
            self.packed[offset, scale] = struct.pack(f"<{self.COUNT}e", *(offset + scale * x for x in self.draws))
        return self.packed[offset, scale]

    def write(self, file, name: str, shape: tuple) -> None:
        """Norm weights near 1, biases small, weights of unit gain."""
        if len(shape) == 1:
            data = self.bytes_of(1.0, 0.1) if name.endswith("weight") and "norm" in name else self.bytes_of(0.0, 0.02)
        else:
            data = self.bytes_of(0.0, 0.02 if "embed" in name else 1.0 / math.sqrt(math.prod(shape[1:])))
        left, begin = 2 * math.prod(shape), 2 * self.rng.randrange(self.COUNT)
        while left > 0:
            part = data[begin : begin + left]
            file.write(part)
            left, begin = left - len(part), 0


def split(tensors: dict[str, tuple]) -> list[dict[str, tuple]]:
    shards, size = [{}], 0
    for name, shape in tensors.items():
        count = 2 * math.prod(shape)
        if size + count > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += count
    return shards


def write_shard(path: Path, tensors: dict[str, tuple], pool: Pool) -> None:
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors.items():
            pool.write(file, name, shape)


def write_configs(out: Path, size: dict, layers: int, image_token: int) -> None:
    text = {"_name_or_path": "lmsys/vicuna", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096,
            "model_type": "llama", "rms_norm_eps": 1e-5, "torch_dtype": "float16", "vocab_size": ROWS,
            "hidden_size": size["hidden"], "intermediate_size": size["inner"], "num_hidden_layers": layers,
            "num_attention_heads": size["heads"], "num_key_value_heads": size["heads"]}
    vision = {"hidden_size": CLIP["hidden"], "image_size": CLIP["image"], "intermediate_size": CLIP["inner"],
              "model_type": "clip_vision_model", "num_attention_heads": CLIP["heads"], "num_hidden_layers": CLIP["layers"],
              "patch_size": CLIP["patch"], "projection_dim": 768, "vocab_size": 32000}
    config = {"architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100, "image_token_index": image_token,
              "model_type": "llava", "pad_token_id": image_token + 1, "projector_hidden_act": "gelu", "text_config": text,
              "tie_word_embeddings": False, "torch_dtype": "float16", "vision_config": vision, "vision_feature_layer": -2,
              "vision_feature_select_strategy": "default"}
    side = CLIP["image"]
    processor = {"crop_size": {"height": side, "width": side}, "do_center_crop": True, "do_convert_rgb": True,
                 "do_normalize": True, "do_rescale": True, "do_resize": True,
                 "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_processor_type": "CLIPImageProcessor",
                 "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3, "rescale_factor": 0.00392156862745098,
                 "size": {"shortest_edge": side}}
    generation = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": image_token + 1}
    for name, value in (("config", config), ("preprocessor_config", processor), ("generation_config", generation)):
        (out / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with tokenizer.model and its companions")
    parser.add_argument("--size", choices=SIZES, default="7b")
    parser.add_argument("--layers", type=int, help="decoder layers, those of the size by default")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    size = SIZES[args.size]
    layers = size["layers"] if args.layers is None else args.layers
    tensors = decoder_tensors(size["hidden"], size["inner"], layers) | vision_tensors(size["hidden"])
    shards = split(tensors)
    needed = 2 * sum(math.prod(shape) for shape in tensors.values())
    args.out.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(args.out).free
    if free < needed + (1 << 30):
        parser.error(f"{args.out}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
    pool = Pool(args.seed)
    index = {"metadata": {"total_size": needed}, "weight_map": {}}
    for i, shard in enumerate(shards, 1):
        name = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        write_shard(args.out / name, shard, pool)
        index["weight_map"] |= dict.fromkeys(shard, name)
        print(f"{name}: {len(shard)} tensors", flush=True)
    (args.out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    for name in TOKENIZER_FILES:
        if (args.tokenizer / name).exists():
            shutil.copyfile(args.tokenizer / name, args.out / name)
    added = args.tokenizer / "added_tokens.json"
    tokens = json.loads(added.read_text()) if added.exists() else {}
    write_configs(args.out, size, layers, tokens.get("<image>", 32000))


if __name__ == "__main__":
    main()
