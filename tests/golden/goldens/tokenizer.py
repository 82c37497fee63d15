"""The golden tokenizer: a 512-piece SentencePiece BPE model in the files that llava-hf and the original layout publish."""

import io
import json

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers.convert_slow_tokenizer import import_protobuf

from . import corpus
from .paths import TOKENIZER

VOCAB = 512
IMAGE_ID = 512
PAD_ID = 513


def write_json(path, value) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def train() -> None:
    """Trains tokenizer.model with the options of Llama-2's (models.md 1.7)."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus.lines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB,
        character_coverage=0.9995,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        unk_surface=" \u2047 ",
        num_threads=1,
        minloglevel=2,
    )
    (TOKENIZER / "tokenizer.model").write_bytes(model.getvalue())


def pieces() -> list[tuple[str, float, int]]:
    """(text, score, type) of every piece; type 6 is a byte piece."""
    proto = import_protobuf().ModelProto()
    proto.ParseFromString((TOKENIZER / "tokenizer.model").read_bytes())
    return [(p.piece, p.score, p.type) for p in proto.pieces]


def merges(table: list[tuple[str, float, int]]) -> list[tuple[str, str]]:
    """Every way to split a learnt piece in two pieces, ordered by the rank of the result, as transformers does."""
    ids = {text: i for i, (text, _, _) in enumerate(table)}
    found = []
    for text, score, kind in table:
        if kind != 1:
            continue
        splits = [(text[:k], text[k:]) for k in range(1, len(text))]
        splits = [s for s in splits if s[0] in ids and s[1] in ids]
        found += [(score, s) for s in sorted(splits, key=lambda s: (ids[s[0]], ids[s[1]]))]
    found.sort(key=lambda item: (item[0], len(item[1][0]), len(item[1][1])), reverse=True)
    return [s for _, s in found]


def write_tokenizer_json() -> None:
    """tokenizer.json as llava-hf publishes it: Prepend and Replace, no pre-tokenizer, byte fallback, `<s>` in front."""
    table = pieces()
    vocab = {text: i for i, (text, _, _) in enumerate(table)}
    fast = Tokenizer(BPE(vocab=vocab, merges=merges(table), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fast.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", "<image>", "<pad>"]
    fast.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    assert fast.token_to_id("<image>") == IMAGE_ID and fast.token_to_id("<pad>") == PAD_ID
    fast.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    (TOKENIZER / "tokenizer.json").write_text(fast.to_str(pretty=True) + "\n", encoding="utf-8")


def special_map(pad: str) -> dict:
    entry = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": pad}
    return {name: {"content": text, **entry} for name, text in names.items()}


def write_side_files() -> None:
    """The small JSON files beside tokenizer.model: llava-hf's in tokenizer/, the original layout's in tokenizer/original/."""
    entry = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    added = {"0": "<unk>", "1": "<s>", "2": "</s>", str(IMAGE_ID): "<image>", str(PAD_ID): "<pad>"}
    common = {"add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "eos_token": "</s>",
              "clean_up_tokenization_spaces": False, "legacy": False, "model_max_length": 512,
              "padding_side": "left", "sp_model_kwargs": {}, "tokenizer_class": "LlamaTokenizer",
              "unk_token": "<unk>", "use_default_system_prompt": False}
    write_json(TOKENIZER / "tokenizer_config.json", {
        **common, "add_prefix_space": None, "pad_token": "<pad>", "image_token": "<image>",
        "added_tokens_decoder": {i: {"content": t, **entry} for i, t in added.items()},
        "processor_class": "LlavaProcessor"})
    write_json(TOKENIZER / "added_tokens.json", {"<image>": IMAGE_ID, "<pad>": PAD_ID})
    write_json(TOKENIZER / "special_tokens_map.json", special_map("<pad>"))
    original = TOKENIZER / "original"
    original.mkdir(exist_ok=True)
    write_json(original / "tokenizer_config.json", {**common, "pad_token": "<unk>"})
    write_json(original / "special_tokens_map.json", special_map("<unk>"))


def make() -> None:
    TOKENIZER.mkdir(exist_ok=True)
    train()
    write_tokenizer_json()
    write_side_files()
