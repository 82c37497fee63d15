"""Small files in every format that libvar reads, and the pixels that Pillow reads from them."""

import io
import struct
import zlib

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file

from .paths import DECODE, ROOT


def scene(width: int = 24, height: int = 16) -> np.ndarray:
    """uint8 [H, W, 3]: a smooth picture without any symmetry, so that a turned or mirrored one is told apart."""
    y, x, c = np.mgrid[0:height, 0:width, 0:3]
    out = 127 + 90 * np.sin(x / 4.0 + c) * np.cos(y / 5.0 - c / 2) + 20 * (x > 2 * y)
    return np.clip(out, 0, 255).astype(np.uint8)


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(header: bytes, raw: bytes) -> bytes:
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts)


def png_16(samples: np.ndarray) -> bytes:
    """A 16-bit PNG, grey [H, W] or RGB [H, W, 3]; Pillow writes no 16-bit RGB."""
    height, width = samples.shape[:2]
    rows = samples.astype(">u2").reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    return png(struct.pack(">IIBBBBB", width, height, 16, 0 if samples.ndim == 2 else 2, 0, 0, 0), raw)


def encoded(picture: Image.Image, form: str, **options) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def alpha(picture: Image.Image) -> Image.Image:
    """RGBA with transparent, half-transparent and opaque parts."""
    ramp = np.tile(np.linspace(0, 255, picture.width).astype(np.uint8), (picture.height, 1))
    out = picture.convert("RGBA")
    out.putalpha(Image.fromarray(ramp))
    return out


def png_files(picture: Image.Image) -> dict[str, bytes]:
    grey, palette = picture.convert("L"), picture.quantize(16)
    wide = scene().astype(np.uint16) * 257 + 13
    return {
        "rgb.png": encoded(picture, "PNG"),
        "rgb_interlaced.png": adam7(scene()),
        "grey.png": encoded(grey, "PNG"),
        "palette.png": encoded(palette, "PNG"),
        "palette_4bit.png": encoded(picture.quantize(9), "PNG", bits=4),
        "palette_transparent.png": encoded(palette, "PNG", transparency=3),
        "grey_transparent.png": encoded(grey, "PNG", transparency=int(np.asarray(grey)[0, 0])),
        "rgba.png": encoded(alpha(picture), "PNG"),
        "grey_alpha.png": encoded(alpha(picture).convert("LA"), "PNG"),
        "one_bit.png": encoded(picture.convert("1"), "PNG"),
        "rgb_16bit.png": png_16(wide),
        "grey_16bit.png": png_16(wide[:, :, 1]),
        "one_pixel.png": encoded(picture.crop((0, 0, 1, 1)), "PNG"),
        "one_column.png": encoded(picture.crop((5, 0, 6, 16)), "PNG"),
        "rgb_gamma.png": with_chunk(encoded(picture, "PNG"), b"gAMA", struct.pack(">I", 100000)),
    }


def with_chunk(data: bytes, kind: bytes, body: bytes) -> bytes:
    """A PNG with one more chunk after its header."""
    return data[:33] + chunk(kind, body) + data[33:]


def adam7(rgb: np.ndarray) -> bytes:
    """An interlaced 8-bit RGB PNG; Pillow writes none."""
    height, width = rgb.shape[:2]
    raw = b""
    for x0, y0, dx, dy in ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)):
        part = rgb[y0::dy, x0::dx]
        raw += b"".join(b"\0" + row.tobytes() for row in part if row.size)
    return png(struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1), raw)


def jpeg_files(picture: Image.Image) -> dict[str, bytes]:
    out = {
        "baseline.jpg": encoded(picture, "JPEG", quality=85),
        "full_chroma.jpg": encoded(picture, "JPEG", quality=95, subsampling=0),
        "half_chroma.jpg": encoded(picture, "JPEG", quality=80, subsampling=1),
        "odd_size.jpg": encoded(Image.fromarray(scene(31, 19)), "JPEG", quality=85),
        "progressive.jpg": encoded(picture, "JPEG", quality=85, progressive=True),
        "grey.jpg": encoded(picture.convert("L"), "JPEG", quality=85),
        "cmyk.jpg": encoded(picture.convert("CMYK"), "JPEG", quality=90),
        "restart.jpg": encoded(picture, "JPEG", quality=75, restart_marker_blocks=1),
    }
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        out[f"orientation_{orientation}.jpg"] = encoded(picture, "JPEG", quality=90, exif=exif)
    return out


def other_files(picture: Image.Image) -> dict[str, bytes]:
    return {
        "lossy.webp": encoded(picture, "WEBP", quality=80),
        "lossless.webp": encoded(picture, "WEBP", lossless=True),
        "alpha.webp": encoded(alpha(picture), "WEBP", lossless=True, exact=True),
        "rgb.bmp": encoded(picture, "BMP"),
        "palette.bmp": encoded(picture.quantize(16), "BMP"),
        "grey.bmp": encoded(picture.convert("L"), "BMP"),
        "one_bit.bmp": encoded(picture.convert("1"), "BMP"),
    }


def broken_files(good: dict[str, bytes]) -> dict[str, bytes]:
    """Files that must be refused."""
    return {"truncated.png": good["rgb.png"][:-60], "truncated.jpg": good["baseline.jpg"][: len(good["baseline.jpg"]) // 2],
            "truncated.webp": good["lossless.webp"][:40], "text.png": b"this is not a picture\n", "empty.jpg": b""}


def expected(data: bytes, rotate: bool) -> np.ndarray:
    picture = Image.open(io.BytesIO(data))
    return np.asarray((ImageOps.exif_transpose(picture) if rotate else picture).convert("RGB")).copy()


def rule(name: str) -> dict:
    """How near libvar must come: equal, or as models.md 0.4 says."""
    if name == "cmyk.jpg":
        return {"tolerance": 1, "source": "pillow"}
    if name == "grey_16bit.png":
        return {"tolerance": 0, "source": "high byte"}
    return {"tolerance": 0, "source": "pillow"}


def make() -> None:
    from .store import dumps

    DECODE.mkdir(exist_ok=True)
    picture = Image.fromarray(scene())
    files = {**png_files(picture), **jpeg_files(picture), **other_files(picture)}
    entries, tensors = [], {}
    for name, data in files.items():
        (DECODE / name).write_bytes(data)
        turned, plain = expected(data, True), expected(data, False)
        if name == "grey_16bit.png":  # Pillow clips it to white; OpenCV's picture is kept: the high byte of every sample
            high = (scene().astype(np.uint16)[:, :, 1] * 257 + 13) >> 8
            turned = plain = np.repeat(high.astype(np.uint8)[:, :, None], 3, axis=2)
        entry = {"file": f"decode/{name}", "width": turned.shape[1], "height": turned.shape[0], **rule(name), "pixels": name}
        tensors[name] = torch.from_numpy(turned)
        if turned.shape != plain.shape or (turned != plain).any():
            entry["pixels_unrotated"] = name + ".unrotated"
            tensors[entry["pixels_unrotated"]] = torch.from_numpy(plain)
        entries.append(entry)
    broken = broken_files(files)
    for name, data in broken.items():
        (DECODE / name).write_bytes(data)
    values = {"files": entries, "refused": [f"decode/{name}" for name in broken]}
    (ROOT / "decode.json").write_text(dumps(values), encoding="utf-8")
    save_file(tensors, str(ROOT / "decode.safetensors"))
    (ROOT / "decode.safetensors").chmod(0o644)
