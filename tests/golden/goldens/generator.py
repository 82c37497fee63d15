"""Weights from a counter: every value follows from a name and an index alone, exactly, in any language (README.md)."""

import numpy as np

MASK = (1 << 64) - 1
GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def fnv1a64(text: str) -> int:
    """The 64-bit FNV-1a hash of the UTF-8 bytes: the seed of one tensor."""
    value = 0xCBF29CE484222325
    for byte in text.encode("utf-8"):
        value = ((value ^ byte) * 0x100000001B3) & MASK
    return value


def splitmix64(z: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 on uint64."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def unit(seed: int, count: int) -> np.ndarray:
    """float32 [count]: elements 0..count-1 of the stream, multiples of 2^-23 in [-1, 1)."""
    with np.errstate(over="ignore"):
        index = np.arange(1, count + 1, dtype=np.uint64)
        z = splitmix64(np.uint64(seed) + index * np.uint64(GOLDEN_GAMMA))
    high = (z >> np.uint64(40)).astype(np.int64) - (1 << 23)
    return high.astype(np.float32) * np.float32(2.0**-23)


def picture(seed_name: str, width: int, height: int) -> np.ndarray:
    """uint8 [height, width, 3]: noise."""
    noise = unit(fnv1a64(seed_name), height * width * 3)
    return ((noise + 1) * 128).astype(np.uint8).reshape(height, width, 3)


def fill(seed_name: str, tensor: dict) -> np.ndarray:
    """A tensor before its overrides: fl(fl(u * scale) + offset), two roundings, never a fused multiply-add."""
    count = int(np.prod(tensor["shape"]))
    u = unit(fnv1a64(f"{seed_name}/{tensor['name']}"), count)
    return u * np.float32(tensor["scale"]) + np.float32(tensor["offset"])


def apply_override(flat: np.ndarray, override: dict) -> None:
    """Sets or multiplies the flat elements begin, begin + stride, ... (count of them), in place."""
    begin, count, stride = override["begin"], override["count"], override["stride"]
    where = slice(begin, begin + count * stride, stride)
    if "set" in override:
        flat[where] = np.float32(override["set"])
    else:
        flat[where] *= np.float32(override["multiply"])


def weights(case: dict) -> dict[str, np.ndarray]:
    """Every tensor of a case under its layout-A name, float32, before rounding to the case's dtype."""
    out = {}
    for tensor in case["tensors"]:
        flat = fill(case["seed_name"], tensor)
        for override in case["overrides"]:
            if override["tensor"] == tensor["name"]:
                apply_override(flat, override)
        out[tensor["name"]] = flat.reshape(tensor["shape"])
    return out


def test_vectors() -> dict:
    """Values for the author of another implementation to check against."""
    name = "mha/language_model.model.embed_tokens.weight"
    seed = fnv1a64(name)
    with np.errstate(over="ignore"):
        z = splitmix64(np.uint64(seed) + np.arange(1, 4, dtype=np.uint64) * np.uint64(GOLDEN_GAMMA))
    tensor = {"name": "language_model.model.embed_tokens.weight", "shape": [3], "scale": 0.0765465572476387, "offset": 1.0}
    tensor["scale"] = float(np.float32(tensor["scale"]))
    value = fill("mha", tensor)
    return {
        "fnv1a64": {"": f"{fnv1a64(''):016x}", "a": f"{fnv1a64('a'):016x}", name: f"{seed:016x}"},
        "stream": {"seed_text": name, "z": [f"{int(v):016x}" for v in z], "u": [float(v) for v in unit(seed, 3)]},
        "value": {"scale": tensor["scale"], "offset": tensor["offset"],
                  "bits": [f"{int(v):08x}" for v in value.view(np.uint32)]},
    }
