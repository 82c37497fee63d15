"""The small pictures that the model runs look at: cut from two CC0 photographs, and a few made of integers."""

import numpy as np
from PIL import Image

from .paths import IMAGES, PHOTOS

CUTS = {  # name: photograph, box (left, top, right, bottom), size after it
    "landscape.png": ("coffee.png", (60, 40, 540, 340), (128, 80)),
    "portrait.png": ("chelsea.png", (110, 20, 280, 300), (68, 112)),
    "wide.png": ("coffee.png", (0, 150, 600, 222), (300, 36)),
    "uneven.png": ("astronaut.png", (100, 0, 352, 194), (126, 97)),
}


def make() -> None:
    IMAGES.mkdir(exist_ok=True)
    for name, (photo, box, size) in CUTS.items():
        Image.open(PHOTOS / photo).convert("RGB").crop(box).resize(size, Image.BICUBIC).save(IMAGES / name, optimize=True)
    y, x, c = np.mgrid[0:3, 0:5, 0:3]
    Image.fromarray(((x * 50 + y * 70 + c * 31) % 256).astype(np.uint8)).save(IMAGES / "tiny.png")
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(IMAGES / "flat.png")
