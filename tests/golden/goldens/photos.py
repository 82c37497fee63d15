"""Six photographs through transformers' Pillow processors at 336 x 336, and bicubic resizes of random pictures."""

import hashlib
import os
import shutil

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from . import generator, resize_order
from .cases import CLIP_MEAN, CLIP_STD
from .paths import PHOTOS, ROOT

FILES = ["astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "retina.jpg", "hubble_deep_field.jpg"]
WHOLE = {("chelsea.png", "crop"), ("rocket.jpg", "pad")}  # kept as pictures too, for whoever has to find a difference
SIZE = 336
PAD_COLOUR = (122, 116, 104)
# (width, height) -> (width, height): down, up, mixed, one pass only, copy, one pixel.
RESIZES = [
    ((40, 30), (20, 15)), ((40, 30), (13, 7)), ((31, 47), (9, 46)), ((64, 64), (17, 17)), ((50, 3), (7, 2)),
    ((12, 9), (24, 18)), ((5, 7), (37, 23)), ((3, 2), (16, 16)), ((8, 8), (9, 9)), ((20, 10), (33, 21)),
    ((40, 10), (20, 30)), ((10, 40), (30, 11)), ((33, 32), (32, 33)), ((28, 20), (28, 11)), ((28, 20), (15, 20)),
    ((16, 16), (16, 16)), ((1, 20), (1, 9)), ((1, 1), (8, 5)), ((25, 1), (10, 3)), ((30, 17), (1, 1)),
    ((1, 33), (12, 12)), ((61, 45), (42, 31)), ((48, 27), (46, 26)),
]


def copy_photos() -> None:
    """Takes the photographs from scikit-image's package data, as they are."""
    import skimage

    PHOTOS.mkdir(exist_ok=True)
    for name in FILES:
        shutil.copyfile(os.path.join(os.path.dirname(skimage.__file__), "data", name), PHOTOS / name)


def processor(mode: str, size: int = SIZE, floats: bool = False):
    """The processor of a mode; without `floats` it stops before rescaling and returns uint8."""
    options = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}, "resample": 3,
               "image_mean": CLIP_MEAN, "image_std": CLIP_STD, "do_rescale": floats, "do_normalize": floats}
    return LlavaImageProcessorPil(do_pad=True, **options) if mode == "pad" else CLIPImageProcessorPil(**options)


def pixels(picture: Image.Image, mode: str) -> np.ndarray:
    """uint8 [336, 336, 3]."""
    out = processor(mode)([picture], return_tensors="np")["pixel_values"][0]
    assert out.dtype == np.uint8
    return np.ascontiguousarray(out.transpose(1, 2, 0))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def table() -> np.ndarray:
    """float32 [3, 256]: what rescaling and normalising make of every value, by the processor itself."""
    ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    out = processor("crop", 16, floats=True)([Image.fromarray(ramp)], return_tensors="np")["pixel_values"][0]
    assert out.dtype == np.float32
    return out.reshape(3, 256)


def photo_entries() -> list[dict]:
    entries = []
    for name in FILES:
        picture = Image.open(PHOTOS / name).convert("RGB")
        entry = {"file": f"photos/{name}", "width": picture.width, "height": picture.height,
                 "decoded_sha256": sha256(np.asarray(picture).tobytes())}
        for mode in ("crop", "pad"):
            out = pixels(picture, mode)
            entry[mode] = {"sha256": sha256(out.tobytes())}
            if (name, mode) in WHOLE:
                stem = f"photos/expected_{name.split('.')[0]}_{mode}.png"
                Image.fromarray(out).save(ROOT / stem, optimize=True)
                entry[mode]["picture"] = stem
        entries.append(entry)
    return entries


def resizes() -> dict[str, torch.Tensor]:
    """Random uint8 pictures, smooth ones for every third, and Pillow's bicubic resize of each."""
    out = {}
    for i, (source, target) in enumerate(RESIZES):
        picture = generator.picture(f"resize/{i}", *source)
        if i % 3 == 2:
            y, x, c = np.mgrid[0 : source[1], 0 : source[0], 0:3]
            picture = (128 + 100 * np.sin(x / 5 + c) * np.cos(y / 7)).astype(np.uint8)
        result = np.asarray(Image.fromarray(picture).resize(target, Image.BICUBIC))
        out[f"{i:02d}.source"], out[f"{i:02d}.target"] = torch.from_numpy(picture.copy()), torch.from_numpy(result.copy())
    return out


def make() -> None:
    from .store import dumps

    values = {"size": SIZE, "pad_colour": list(PAD_COLOUR), "resizes": len(RESIZES), "photos": photo_entries()}
    (ROOT / "photos.json").write_text(dumps(values), encoding="utf-8")
    file = ROOT / "resize.safetensors"
    save_file({**resizes(), "normalise": torch.from_numpy(table())}, str(file))
    file.chmod(0o644)
    resize_order.make()
