#!/usr/bin/env python3
"""Makes a checkpoint of random weights in a model's published form, with its real widths and vocabulary, in little memory.

For measurements by hand, not part of the tests. Needs the Python standard library alone.

    tests/tools/make_random_checkpoint.py qwen2-vl-7b OUT_DIR                 # the whole shape: 16.6 GB
    tests/tools/make_random_checkpoint.py llava-1.5-13b OUT_DIR --layers 4    # few decoder layers, the whole vision tower

A tokenizer of the real size is made too. With --tokenizer a given one is copied instead; it may be smaller than the
vocabulary, and special tokens keep the ids that they have there.
"""

import argparse
import json
import math
import random
import shutil
import struct
from pathlib import Path

from random_checkpoint import tokenizers
from random_checkpoint.models import MODELS, Checkpoint, Shapes

SHARD_BYTES = 5_000_000_000
DTYPES = {"float16": "F16", "bfloat16": "BF16"}


def count_bytes(shapes: Shapes) -> int:
    return sum(2 * math.prod(shape) for shape in shapes.values())


class Pool:
    """Draws of a normal variable as 16-bit floats, once for each scale; a tensor is the pool from some place on, repeated.

    The number of draws is a prime, so that the rows of a matrix differ.
    """

    COUNT = 1_048_573

    def __init__(self, seed: int, dtype: str):
        self.rng = random.Random(seed)
        self.dtype = dtype
        self.draws = [self.rng.gauss(0.0, 1.0) for _ in range(self.COUNT)]
        self.packed = {}

    def pack(self, values: list[float]) -> bytes:
        if self.dtype == "float16":
            return struct.pack(f"<{len(values)}e", *values)
        full = struct.pack(f"<{len(values)}f", *values)  # bfloat16: the upper halves
        half = bytearray(2 * len(values))
        half[0::2], half[1::2] = full[2::4], full[3::4]
        return bytes(half)

    def bytes_of(self, offset: float, scale: float) -> bytes:
        if (offset, scale) not in self.packed:
            self.packed[offset, scale] = self.pack([offset + scale * x for x in self.draws])
        return self.packed[offset, scale]

    def write(self, file, name: str, shape: tuple) -> None:
        """Norm weights near 1, biases small, weights of unit gain."""
        if len(shape) == 1:  # a weight of one dimension is a norm's
            data = self.bytes_of(1.0, 0.1) if name.endswith(".weight") else self.bytes_of(0.0, 0.02)
        else:
            data = self.bytes_of(0.0, 0.02 if "embed" in name else 1.0 / math.sqrt(math.prod(shape[1:])))
        left, begin = 2 * math.prod(shape), 2 * self.rng.randrange(self.COUNT)
        while left > 0:
            part = data[begin : begin + left]
            file.write(part)
            left, begin = left - len(part), 0


def split(tensors: Shapes) -> list[Shapes]:
    shards: list[Shapes] = [{}]
    for name, shape in tensors.items():
        if shards[-1] and count_bytes(shards[-1]) + 2 * math.prod(shape) > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = shape
    return shards


def write_shard(path: Path, tensors: Shapes, pool: Pool) -> None:
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": DTYPES[pool.dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors.items():
            pool.write(file, name, shape)


def write_tensors(folder: Path, tensors: Shapes, pool: Pool) -> None:
    shards = split(tensors)
    if len(shards) == 1:
        write_shard(folder / "model.safetensors", tensors, pool)
        return
    index = {"metadata": {"total_size": count_bytes(tensors)}, "weight_map": {}}
    for i, shard in enumerate(shards, 1):
        name = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        write_shard(folder / name, shard, pool)
        index["weight_map"] |= dict.fromkeys(shard, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_checkpoint(out: Path, checkpoint: Checkpoint, seed: int) -> None:
    for name, value in checkpoint.files.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(json.dumps(value, indent=2) + "\n")
    pool = Pool(seed, checkpoint.dtype)
    for folder, tensors in checkpoint.parts.items():
        (out / folder).mkdir(exist_ok=True)
        write_tensors(out / folder, tensors, pool)
        print(f"{out / folder}: {len(tensors)} tensors, {count_bytes(tensors) / 1e9:.2f} GB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, help="decoder layers, those of the model by default")
    parser.add_argument("--tokenizer", type=Path, help="folder with tokenizer files to copy")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model = MODELS[args.model]
    if args.layers is not None:
        model = model.with_layers(args.layers)
    draft = model.build(model.decoder, tokenizers.KINDS[model.tokenizer])
    needed = sum(count_bytes(tensors) for tensors in draft.parts.values())
    args.out.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(args.out).free
    if free < needed + (1 << 30):
        parser.error(f"{args.out}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
    folder = args.out / draft.tokenizer_folder
    folder.mkdir(exist_ok=True)
    if args.tokenizer is None:
        tokenizers.write(folder, model.tokenizer, args.seed)
    else:
        for name in tokenizers.FILES:
            if (args.tokenizer / name).exists():
                shutil.copyfile(args.tokenizer / name, folder / name)
    ids = tokenizers.special_ids(folder, model.tokenizer)
    write_checkpoint(args.out, model.build(model.decoder, ids), args.seed)


if __name__ == "__main__":
    main()
