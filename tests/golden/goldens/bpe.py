"""bpe/: two small byte-level tokenizers in published form, a sentencepiece model without a leading space, and what Python makes of lines.py's text."""

import io
import json

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE

from . import corpus, generator, lines
from .paths import ROOT, TOKENIZER

FOLDER = ROOT / "bpe"
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
LLAMA3_SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
INTERNLM2_SPECIAL = ["<|im_end|>", "<|im_start|>", "<img>", "</img>", "<IMG_CONTEXT>"]


def train(pattern: str, nfc: bool, size: int) -> Tokenizer:
    out = Tokenizer(BPE())
    if nfc:
        out.normalizer = normalizers.NFC()
    out.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
                                                 pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    out.decoder = decoders.ByteLevel()
    text = corpus.lines() + lines.lines(["  "], 1500)
    out.train_from_iterator(text, trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return out


def special(texts: list[str]) -> list[AddedToken]:
    return [AddedToken(t, normalized=False, special=True) for t in texts]


def make_qwen2() -> Tokenizer:
    """vocab.json and merges.txt beside tokenizer.json, as Qwen2 publishes them; one token that is normalised and not special."""
    out = train(QWEN2, True, 600)
    out.post_processor = processors.ByteLevel(trim_offsets=False)
    out.add_special_tokens(special(QWEN2_SPECIAL))
    out.add_tokens([AddedToken("<é>", normalized=True, special=False)])
    folder = FOLDER / "qwen2"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(out.to_str() + "\n", encoding="utf-8")
    model = json.loads(out.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False) + "\n", encoding="utf-8")
    merges = "".join(f"{a} {b}\n" for a, b in model["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    entry = {"lstrip": False, "rstrip": False, "single_word": False}
    added = json.loads(out.to_str())["added_tokens"]
    config = {"add_prefix_space": False, "bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "clean_up_tokenization_spaces": False,
              "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
              "added_tokens_decoder": {str(t["id"]): {"content": t["content"], "normalized": t["normalized"], "special": t["special"], **entry} for t in added}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return out


def make_llama3() -> Tokenizer:
    """ignore_merges: some tokens of the vocabulary are the result of no merge, as in Llama-3's, and are found as whole pieces only."""
    value = json.loads(train(LLAMA3, False, 560).to_str())
    model = value["model"]
    model["ignore_merges"] = True
    for word in ("Ġquestion", "Ġphotograph", "assistant", "ĠAbove", "Ġzebra"):
        model["vocab"].setdefault(word, len(model["vocab"]))
    out = Tokenizer.from_str(json.dumps(value))
    out.add_special_tokens(special(LLAMA3_SPECIAL))
    bos = ("<|begin_of_text|>", out.token_to_id("<|begin_of_text|>"))
    out.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False),
                                              processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[bos])])
    folder = FOLDER / "llama3"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(out.to_str() + "\n", encoding="utf-8")
    return out


def make_internlm2():
    """A sentencepiece model with byte fallback and without a dummy prefix; special tokens behind its vocabulary. Gives (encode, decode)."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus.lines()), model_writer=model, model_type="bpe", vocab_size=440, character_coverage=0.9995, byte_fallback=True,
        split_digits=True, add_dummy_prefix=False, remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
        normalization_rule_name="identity", unk_id=0, bos_id=1, eos_id=2, pad_id=-1, unk_surface=" \u2047 ", num_threads=1, minloglevel=2)
    folder = FOLDER / "internlm2"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    added = {text: 440 + i for i, text in enumerate(INTERNLM2_SPECIAL)}
    (folder / "added_tokens.json").write_text(json.dumps(added, indent=1) + "\n")
    return split_encode(pieces, {"<unk>": 0, "<s>": 1, "</s>": 2, **added})


def split_encode(pieces, added: dict[str, int]):
    """Encoding as tokenizer.json describes it: cut at the special tokens, the longest first, each stretch by itself."""
    def encode(text: str) -> list[int]:
        ids, begin, at = [], 0, 0
        while at < len(text):
            token = max((t for t in added if text.startswith(t, at)), key=len, default=None)
            if token is None:
                at += 1
                continue
            ids += pieces.encode(text[begin:at]) + [added[token]]
            begin = at = at + len(token)
        return ids + pieces.encode(text[begin:])
    return encode


def digest(ids: list[int]) -> str:
    """FNV-1a-64 of the ids, four little-endian bytes each."""
    value = 0xCBF29CE484222325
    for byte in b"".join(i.to_bytes(4, "little") for i in ids):
        value = ((value ^ byte) * 0x100000001B3) & generator.MASK
    return f"{value:016x}"


def fast_row(tokenizer: Tokenizer, text: str) -> list:
    """Digest of the ids, and the decoded text where it is not the text itself."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    return [digest(ids)] + ([] if decoded == text else [decoded])


def streams(tokenizer: Tokenizer, count: int = 60) -> list[dict]:
    """Random ids, whose bytes are seldom UTF-8, with their text."""
    size = tokenizer.get_vocab_size()
    unit = (generator.unit(generator.fnv1a64("bpe/streams"), count * 24) + 1) / 2
    out = []
    for i in range(count):
        ids = [int(v * (256 if i % 2 else size)) for v in unit[i * 24 : i * 24 + 2 + i % 22]]
        out.append({"ids": ids, "text": tokenizer.decode(ids, skip_special_tokens=True)})
    return out


def make() -> None:
    FOLDER.mkdir(exist_ok=True)
    qwen2, llama3, internlm2 = make_qwen2(), make_llama3(), make_internlm2()
    llava = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    text = lines.lines(QWEN2_SPECIAL + LLAMA3_SPECIAL + INTERNLM2_SPECIAL + ["<s>", "</s>", "<image>", "<é>", "<e\u0301>"])
    rows = [json.dumps([t, fast_row(qwen2, t), fast_row(llama3, t), fast_row(llava, t), [digest(internlm2(t))]], ensure_ascii=True) for t in text]
    head = {"models": ["bpe/qwen2", "bpe/llama3", "tokenizer", "bpe/internlm2"], "qwen2_streams": streams(qwen2), "llama3_streams": streams(llama3),
            "examples": [{"text": t, "qwen2": qwen2.encode(t).ids, "llama3": llama3.encode(t).ids} for t in text[:12]]}
    body = json.dumps(head)[:-1] + ',\n "lines": [\n' + ",\n".join(rows) + "\n]}\n"
    (FOLDER / "lines.json").write_text(body, encoding="utf-8")
    print(f"{len(text)} lines, {len(body)} bytes")
