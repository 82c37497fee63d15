"""Bicubic resizes by two versions of Pillow, which order the two passes differently. Needs Pillow, NumPy and safetensors alone."""

import numpy as np
import PIL
from PIL import Image
from safetensors.numpy import load_file, save_file

from . import generator
from .paths import ROOT

FILE = ROOT / "resize_order.safetensors"
# (width, height) -> (width, height). Vertical first from 13.0.0 on: rows are lost, and more than twice as many as columns.
SIZES = [
    # both shrink: twice as many rows as columns, one less, one more; likewise at a difference of one column
    ((24, 30), (19, 20)), ((24, 30), (19, 21)), ((24, 30), (19, 19)), ((20, 22), (19, 20)), ((20, 22), (19, 21)), ((20, 22), (19, 19)),
    ((30, 24), (8, 20)), ((30, 30), (15, 15)), ((12, 40), (9, 5)), ((12, 40), (9, 35)), ((40, 12), (4, 3)),
    # rows are lost, columns are won
    ((16, 20), (17, 19)), ((16, 20), (19, 19)), ((16, 20), (30, 18)), ((16, 20), (18, 7)), ((5, 33), (26, 11)), ((2, 9), (3, 1)),
    # both grow: by the same, twice as many rows as columns, one less, one more, many more columns
    ((16, 18), (17, 19)), ((10, 12), (15, 22)), ((10, 12), (15, 21)), ((10, 12), (15, 23)), ((10, 12), (30, 13)), ((7, 5), (20, 24)),
    # rows are won, columns are lost
    ((20, 16), (19, 17)), ((20, 16), (10, 17)), ((20, 16), (7, 30)),
    # one pass or none
    ((18, 15), (18, 9)), ((18, 15), (18, 22)), ((18, 15), (11, 15)), ((18, 15), (25, 15)), ((17, 13), (17, 13)),
    # a portrait near its own size, and to a square
    ((40, 53), (35, 49)), ((37, 61), (56, 56)),
]


def passes(picture: Image.Image, first: tuple, target: tuple) -> np.ndarray:
    """Two resizes of one pass each."""
    return np.asarray(picture.resize(first, Image.BICUBIC).resize(target, Image.BICUBIC))


def make() -> None:
    """Writes this version's results; those of the other version stay."""
    column = f"pillow{PIL.__version__.split('.')[0]}"
    assert column in ("pillow12", "pillow13"), PIL.__version__
    kept = load_file(FILE) if FILE.exists() else {}
    out = {name: tensor for name, tensor in kept.items() if not name.endswith((".source", column))}
    for i, (source, target) in enumerate(SIZES):
        picture = generator.picture(f"resize_order/{i}", *source)
        image = Image.fromarray(picture)
        result = np.asarray(image.resize(target, Image.BICUBIC)).copy()
        horizontal_first = passes(image, (target[0], source[1]), target)
        vertical_first = passes(image, (source[0], target[1]), target)
        # Every case with two passes must be able to tell their order.
        two_passes = source[0] != target[0] and source[1] != target[1]
        assert two_passes == (not np.array_equal(horizontal_first, vertical_first)), (source, target)
        assert any(np.array_equal(result, each) for each in (horizontal_first, vertical_first)), (source, target)
        out[f"{i:02d}.source"], out[f"{i:02d}.{column}"] = picture, result
    save_file(out, str(FILE))
    FILE.chmod(0o644)


if __name__ == "__main__":
    make()
