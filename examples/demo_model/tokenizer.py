"""The sentencepiece tokenizer of the demo model, trained on the words that its own questions can hold."""

from __future__ import annotations

import io
import random
from pathlib import Path

import sentencepiece

from scenes import ASKERS, random_scene

IMAGE_TOKEN = "<image>"
PAD_TOKEN = "<pad>"
UNK_ID, BOS_ID, EOS_ID = 0, 1, 2
VOCAB_SIZE = 512  # rows of the embedding; the pieces, <image> and <pad> fill the first of them


def corpus(seed: int = 1, lines: int = 20000) -> list[str]:
    rng = random.Random(seed)
    result = []
    while len(result) < lines:
        scene = random_scene(rng)
        for ask in ASKERS.values():
            question = ask(scene, rng)
            if question is not None:
                # The colon breaks the piece, so that a question's first word is learned without a leading space: after "\n" it has none.
                result += [f"USER: {question.text} ASSISTANT:{question.text}", question.answer]
    return result


def train_tokenizer(path: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=model,
        model_type="bpe",
        vocab_size=440,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        unk_id=UNK_ID,
        bos_id=BOS_ID,
        eos_id=EOS_ID,
        pad_id=-1,
        unk_surface=" \u2047 ",
        num_threads=1,
        minloglevel=1,
    )
    path.write_bytes(model.getvalue())


class Tokenizer:
    """Splits at special tokens first; every text segment gets its own leading space, as Llama's tokenizer.json does."""

    def __init__(self, path: Path):
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.image_id = self.pieces.get_piece_size()
        self.pad_id = self.image_id + 1
        if self.pad_id >= VOCAB_SIZE:
            raise ValueError(f"{self.pad_id + 1} tokens do not fit {VOCAB_SIZE} rows")
        self.prefix = [BOS_ID] + self.segment("USER: ")

    def segment(self, text: str) -> list[int]:
        return self.pieces.encode(text) if text else []

    def word(self, text: str) -> int:
        (token,) = self.pieces.encode(text)
        return token

    def question(self, text: str) -> list[int]:
        """The prompt behind the image."""
        return self.segment(f"\n{text} ASSISTANT:")

    def answer(self, text: str) -> list[int]:
        return self.segment(text) + [EOS_ID]

    def decode(self, ids: list[int]) -> str:
        return self.pieces.decode([i for i in ids if i < self.image_id])
