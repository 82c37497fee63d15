"""Tokenizers of the published sizes, their tokens made of random pairs of earlier ones; special tokens have their real ids."""

import json
import random
import struct
from pathlib import Path

FILES = ["tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"]
LONGEST = 16  # characters of a token
SPACE_MARK = "\u2581"  # of sentencepiece

QWEN2_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

QWEN2 = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>",
         "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
LLAMA3 = {0: "<|begin_of_text|>", 1: "<|end_of_text|>", 6: "<|start_header_id|>", 7: "<|end_header_id|>", 9: "<|eot_id|>"}
LLAMA3_FREE = [i for i in range(256) if i not in LLAMA3]
INTERNLM2 = ["<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>", "<img>", "</img>", "<IMG_CONTEXT>",
             "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"]
CONTROL = {"<unk>": 0, "<s>": 1, "</s>": 2}

# Special tokens with their ids, in the order of the ids: `tokenizers` numbers those of a tokenizer.json one after the other.
KINDS = {
    "llama2": CONTROL,
    "llava": {**CONTROL, "<image>": 32000, "<pad>": 32001},
    "internlm2": {**CONTROL, **{text: 92538 + i for i, text in enumerate(INTERNLM2)}},
    "qwen2": {text: 151643 + i for i, text in enumerate(QWEN2)},
    "llama3": {LLAMA3.get(i) or f"<|reserved_special_token_{LLAMA3_FREE.index(i)}|>": 128000 + i for i in range(256)},
}


def grow(space: str, alphabet: list[str], count: int, seed: int) -> list[tuple[str, str]]:
    """Pairs whose joins are `count` further tokens. Earlier tokens are much likelier parts: then lengths and the ways to make a token of
    two are nearly as many as in trained vocabularies."""
    rng = random.Random(seed)
    parts = list(space + "etaoinshrdlucmfwypvbgkqjxz") + alphabet
    known, pairs = set(alphabet), []
    while len(pairs) < count:
        left, right = (parts[int(len(parts) * rng.random() ** 12)] for _ in range(2))
        if len(left) + len(right) > LONGEST or left + right in known:
            continue
        known.add(left + right)
        parts.append(left + right)
        pairs.append((left, right))
    return pairs


def byte_characters() -> list[str]:
    """GPT-2's map in the order of its ids: printable bytes first, then the others as characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(b) for b in printable] + [chr(0x100 + i) for i in range(256 - len(printable))]


def all_splits(vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to make a token of two, by the token's id: what converted tiktoken vocabularies hold as merges."""
    found = []
    for text in vocab:
        splits = [(text[:k], text[k:]) for k in range(1, len(text))]
        found += sorted((s for s in splits if s[0] in vocab and s[1] in vocab), key=lambda s: (vocab[s[0]], vocab[s[1]]))
    return found


def dump(path: Path, value) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def added_entry(text: str) -> dict:
    return {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}


def write_config(folder: Path, special: dict[str, int], **more) -> None:
    dump(folder / "tokenizer_config.json", {"added_tokens_decoder": {str(i): added_entry(t) for t, i in special.items()}, **more})


def write_byte_level(folder: Path, kind: str, count: int, seed: int) -> None:
    """tokenizer.json, and for Qwen2 vocab.json and merges.txt beside it."""
    alphabet, special = byte_characters(), KINDS[kind]
    pairs = grow("\u0120", alphabet, count - len(alphabet), seed)
    vocab = {text: i for i, text in enumerate(alphabet + [left + right for left, right in pairs])}
    merges = [f"{left} {right}" for left, right in (all_splits(vocab) if kind == "llama3" else pairs)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [], "special_tokens": {"<|begin_of_text|>": {"id": "<|begin_of_text|>", "ids": [128000], "tokens": ["<|begin_of_text|>"]}}}
    split = {"type": "Split", "pattern": {"Regex": LLAMA3_PATTERN if kind == "llama3" else QWEN2_PATTERN}, "behavior": "Isolated", "invert": False}
    dump(folder / "tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [{"id": i, **added_entry(t)} for t, i in special.items()],
        "normalizer": None if kind == "llama3" else {"type": "NFC"}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": {"type": "Sequence", "processors": [byte_level, template]} if kind == "llama3" else byte_level,
        "decoder": {**byte_level, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
                  "byte_fallback": False, "ignore_merges": kind == "llama3", "vocab": vocab, "merges": merges}})
    if kind == "llama3":
        write_config(folder, special, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>", tokenizer_class="PreTrainedTokenizerFast")
        return
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    write_config(folder, special, add_prefix_space=False, bos_token=None, eos_token="<|im_end|>", pad_token="<|endoftext|>",
                 tokenizer_class="Qwen2Tokenizer", unk_token=None)


def field(number: int, value: int | float | bytes | str) -> bytes:
    """A field of a protobuf message: a varint, a float32 or something with a length."""
    def varint(rest: int) -> bytes:
        out = bytearray()
        while rest > 0x7F:
            out.append(rest & 0x7F | 0x80)
            rest >>= 7
        return bytes(out + bytes([rest]))

    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def write_sentencepiece(folder: Path, kind: str, count: int, seed: int) -> None:
    """tokenizer.model (sentencepiece_model.proto: BPE, byte fallback, identity normaliser) and its companions."""
    normal, unknown, control, user_defined, byte = 1, 2, 3, 4, 6
    special = KINDS[kind]
    reserved = [f"[UNUSED_TOKEN_{i}]" for i in range(sum(len(CONTROL) <= i < count for i in special.values()))]
    letters = [SPACE_MARK, *(chr(c) for c in (*range(0x21, 0x7F), *range(0xA1, 0x180), *range(0x391, 0x450), *range(0x4E00, 0x5200)))]
    pairs = grow(SPACE_MARK, letters, count - len(CONTROL) - 256 - len(letters) - len(reserved), seed)
    pieces = [("<unk>", 0.0, unknown), ("<s>", 0.0, control), ("</s>", 0.0, control), *((f"<0x{b:02X}>", 0.0, byte) for b in range(256))]
    # Characters come behind what is made of them, as the trainer writes them; a score is the negative rank.
    learnt = [left + right for left, right in pairs] + letters
    pieces += [(text, -float(rank), normal) for rank, text in enumerate(learnt)] + [(text, 0.0, user_defined) for text in reserved]
    model = b"".join(field(1, field(1, text) + field(2, score) + field(3, type_)) for text, score, type_ in pieces)
    trainer = field(3, 2) + field(4, count) + field(35, 1) + field(40, 0) + field(41, 1) + field(42, 2) + field(43, (1 << 64) - 1)
    dummy_prefix = int(kind != "internlm2")
    normalizer = field(1, "identity") + field(3, dummy_prefix) + field(4, 0) + field(5, 1)
    (folder / "tokenizer.model").write_bytes(model + field(2, trainer) + field(3, normalizer))
    more = {text: i for text, i in special.items() if text not in CONTROL}
    if more:
        dump(folder / "added_tokens.json", more)
    write_config(folder, special, add_bos_token=True, add_eos_token=False, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
                 pad_token={"llava": "<pad>", "llama2": "<unk>", "internlm2": "</s>"}[kind],
                 tokenizer_class="InternLM2Tokenizer" if kind == "internlm2" else "LlamaTokenizer")


def write(folder: Path, kind: str, seed: int) -> None:
    if kind == "qwen2":
        write_byte_level(folder, kind, 151643, seed)
    elif kind == "llama3":
        write_byte_level(folder, kind, 128000, seed)
    else:
        write_sentencepiece(folder, kind, 92544 if kind == "internlm2" else 32000, seed)


def special_ids(folder: Path, kind: str) -> dict[str, int]:
    """Ids of the kind's special tokens, where a given tokenizer has them at other places those."""
    ids = dict(KINDS[kind])
    files = {name: json.loads((folder / name).read_text(encoding="utf-8")) for name in FILES if name.endswith(".json") and (folder / name).exists()}
    ids |= {t["content"]: t["id"] for t in files.get("tokenizer.json", {}).get("added_tokens", [])}
    ids |= {t["content"]: int(i) for i, t in files.get("tokenizer_config.json", {}).get("added_tokens_decoder", {}).items()}
    return ids | files.get("added_tokens.json", {})
