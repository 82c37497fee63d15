"""Where the committed golden data lies."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = ROOT / "tokenizer"
PHOTOS = ROOT / "photos"
IMAGES = ROOT / "images"
DECODE = ROOT / "decode"
