"""text_vectors.json: strings with the ids that transformers gives them, and ids with the strings that it makes of them."""

import json
import shutil
import tempfile
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from . import corpus, generator
from .paths import ROOT, TOKENIZER

SPECIALS = ["<s>", "</s>", "<unk>", "<image>", "<pad>"]

PLAIN = """a|I|USER|ASSISTANT:|What is in the picture?|hello world|Hello, World!|the cat sat on the mat|don't|it's|e.g. this|x=y+z*w|1|12
1234567890|3.14159|-273.15|1,000,000|0x1F|50%|$9.99|2024-06-30|12:34:56|(a)[b]{c}<d>|a/b\\c|#hash|@name|under_score|kebab-case
CamelCaseWord|ALLCAPS|mIxEd|http://example.org/a?b=c&d=e#f|user@example.org|C++20|"quoted"|'single'|`code`|a;b:c|wait...|what?!|--|---|***
greenyellowblue|colourcolour|pictureimage|ththththe|tttttttttt|aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa|zzz|qqq|JQXZ|jqxz""".replace("\n", "|").split("|")

SPACES = ["", " ", "  ", "   ", "    ", "     ", "        ", " a", "  a", "   a", "a ", "a  ", "a b", "a  b", "a   b", "a    b", "a     b",
          " a b ", "  the  cat  ", "the cat ", " the cat", "The  The", "\n", "\n\n", "\n\n\n", " \n", "\n ", " \n ", "a\nb", "a\n\nb",
          "a \n b", "\na", "a\n", "\t", "\t\t", "a\tb", " \t ", "\r", "\r\n", "a\r\nb", "\u00a0", "a\u00a0b", "\u2003", "\u3000", "\u200b",
          "a\u200bb", "\ufeff", "\ufeffa", "x" * 16 + " " * 40 + "y", " " * 100]

SCRIPTS = ["é", "naïve café", "Grüße aus Köln", "ÅÄÖ", "ñandú", "São Paulo", "Ελληνικά", "Привет, мир", "שלום", "مرحبا بالعالم", "العربية ١٢٣",
           "नमस्ते", "தமிழ்", "ไทย", "한국어", "日本語のテスト", "汉字", "漢字 kanji", "你好，世界。", "汉a字b", "中 文", "ｆｕｌｌｗｉｄｔｈ", "①②③",
           "½ ¼ ¾", "€£¥", "™®©", "“quotes” ‘single’", "–—…", "→←↑↓", "∑∏√∞", "ﬁﬂ", "ß ẞ", "İı", "ǅ"]

EMOJI = ["😀", "😀😀", "a😀b", " 😀 ", "👍🏽", "👨‍👩‍👧‍👦", "🇩🇪", "❤️", "☕", "🏳️‍🌈", "1️⃣", "é汉😀", "cat 🐈 dog 🐕"]

MARKS = ["e\u0301", "a\u0308o\u0308", "n\u0303", "\u0301", "a\u0301\u0302\u0303", "Z\u0351\u036b\u0343a", "\u1100\u1161\u11a8", "क\u094d\u0937",
         "\u202eabc\u202c", "a\u00adb", "\ufe0f", "\u20dd"]

CONTROL = ["\x00", "a\x00b", "\x01\x02\x03", "\x07bell", "\x08", "\x0b\x0c", "\x1b[0m", "\x1f", "\x7f", "\x80", "\x9f", "\u2028", "\u2029", "\ufffd",
           "\ufffe", "\uffff", "\U0010ffff", "\ue000", "\U000e0001"]

UNDERSCORES = ["▁", "▁▁", "▁a", "a▁b", "▁ a", " ▁a", "the▁cat", "▁the", "a ▁ b", "▁\n▁", "<s>▁a", "_ ▁ _"]

LOOKALIKES = ["<0x0A>", "<0x41>", "a<0xFF>b", "< s>", "<s >", "<S>", "<Image>", "<image", "image>", "<<s>", "<s>>", "<</s>>", "<image/>", "</image>",
              "<im age>", "<unk", "<|im_start|>", "[INST]", "<pad >", "&lt;s&gt;", "＜s＞", "<s\u200b>", "<\u0131mage>"]


def special_strings() -> list[str]:
    """Every special alone, with text and spaces around it, doubled, and every two beside each other."""
    out = []
    for token in SPECIALS:
        out += [token, f" {token}", f"{token} ", f" {token} ", f"a{token}b", f"a {token} b", f"a  {token}  b", f"{token}\n", f"\n{token}",
                f"{token}a", f"{token} a", f"a{token}", token * 2, f"{token} {token}", token * 3]
    out += [first + second for first in SPECIALS for second in SPECIALS if first != second]
    out += ["USER: <image>\nWhat is this? ASSISTANT:", "<image>\n<image>\nCompare them.", "hello</s>world", "<s>hello</s>", "<s><s>hello",
            "<s> hello </s> <s> world </s>", "<image>😀<image>", "a<image>汉<pad>b", "<image> <image>  <image>", "USER:<image>ASSISTANT:",
            "<s>USER: <image>\nIs there a dog?</s><pad><pad>", "text <unk> text", "<image\n>", "<<image>>", "<s</s>"]
    return out


def long_strings() -> list[str]:
    words = [thing for thing in corpus.THINGS for _ in range(8)]
    return ["".join(words)[:600], "antidisestablishmentarianism" * 6, "ab" * 200, "the" * 150, "汉" * 70, "😀" * 40, "1234567890" * 30,
            " ".join(words), "  ".join(corpus.COLOURS * 5), "\n".join(corpus.SENTENCES[:12])]


def random_strings(count: int = 80) -> list[str]:
    """Mixtures of pieces of everything above, drawn from the weights' generator."""
    atoms = ["the", " ", "  ", "cat", "\n", "é", "汉", "😀", "<image>", "</s>", "1", "23", ",", "▁", "picture", "Q", "z", "\t", "colour", "US", "ER", "\u0301"]
    stream = (generator.unit(generator.fnv1a64("text_vectors"), count * 12) + 1) / 2 * len(atoms)
    return ["".join(atoms[int(v)] for v in stream[i * 12 : i * 12 + 2 + i % 11]) for i in range(count)]


def strings() -> list[str]:
    everything = (PLAIN + SPACES + SCRIPTS + EMOJI + MARKS + CONTROL + UNDERSCORES + LOOKALIKES + special_strings() + long_strings()
                  + random_strings() + corpus.SENTENCES)
    return list(dict.fromkeys(everything))


def reference():
    """AutoTokenizer on the folder as llava-hf publishes it (a LLaVA config.json beside the tokenizer files)."""
    folder = Path(tempfile.mkdtemp())
    for file in TOKENIZER.iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    (folder / "config.json").write_text('{"model_type": "llava"}')
    out = AutoTokenizer.from_pretrained(folder)
    shutil.rmtree(folder)
    return out


def id_lists() -> list[list[int]]:
    """Ids to decode: whole vocabulary in runs, random ids, byte pieces that are and are not UTF-8, specials among text."""
    out = [list(range(i, i + 8)) for i in range(259, 512, 8)]
    stream = (generator.unit(generator.fnv1a64("id_lists"), 40 * 16) + 1) / 2
    out += [[259 + int(v * 252) for v in stream[i * 16 : i * 16 + 1 + i % 16]] for i in range(40)]

    def pieces(data: bytes) -> list[int]:
        return [3 + b for b in data]

    for text in ("é", "汉字", "😀", "a\n\tb", "½é😀"):
        out += [pieces(text.encode()), [262, *pieces(text.encode()), 435], [*pieces(text.encode()), 1, *pieces(text.encode())]]
    out += [[1, 262, 435, 2], [262, 512, 435], [262, 2, 435], [2], [1], [512, 513, 0], [], [453], [453, 453], [453, 262], [264], [264, 473],
            [297, 297], [262, 453], [13], [453, 13], [1, 453, 13]]
    return out


def invalid_id_lists() -> list[list[int]]:
    """Byte pieces that are not UTF-8, alone and beside good ones."""
    def pieces(data: bytes) -> list[int]:
        return [3 + b for b in data]

    data = [b"\xff", b"\x80", b"\xc3", b"\xe6\xb1", b"\xf0\x9f\x98", b"\xc3\x28", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf", b"\xff\xfe\xfd",
            b"a\xffb", b"\xc3\xa9\xff", b"\xff\xc3\xa9", b"\xe6\xb1\x89\xe6", b"\xf0\x9f\x98\x80\xf0\x9f"]
    out = []
    for item in data:
        out += [pieces(item), [262, *pieces(item), 435]]
    return out + [[*pieces(b"\xe6"), 2, *pieces(b"\xb1\x89")], [*pieces(b"\xe6"), 453, *pieces(b"\xb1\x89")]]


def decoded(tokenizer, ids: list[int]) -> dict:
    return {"ids": ids, "text": tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False),
            "text_with_specials": tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)}


def make() -> None:
    auto, fast = reference(), Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    plain = sentencepiece.SentencePieceProcessor(str(TOKENIZER / "tokenizer.model"))
    encode, different = [], []
    for text in strings():
        ids = auto(text).input_ids
        assert ids == fast.encode(text).ids, text
        assert ids[1:] == auto(text, add_special_tokens=False).input_ids and ids[0] == 1
        back = decoded(auto, ids[1:])
        encode.append({"text": text, "ids": ids[1:], "decoded": back["text"], "decoded_with_specials": back["text_with_specials"]})
        if not any(token in text for token in SPECIALS) and plain.encode(text) != ids[1:]:
            different.append(text)
    assert len(encode) >= 300
    print(f"{len(encode)} strings; sentencepiece itself differs on {different}")
    values = {"bos": 1, "encode": encode, "decode": [decoded(auto, ids) for ids in id_lists()],
              "decode_invalid": [decoded(auto, ids) for ids in invalid_id_lists()], "sentencepiece_differs": different}
    lines = {key: ("[\n  " + ",\n  ".join(json.dumps(v) for v in value) + "\n ]" if isinstance(value, list) else json.dumps(value))
             for key, value in values.items()}
    text = "{\n" + ",\n".join(f' "{key}": {value}' for key, value in lines.items()) + "\n}\n"
    assert json.loads(text) == values
    (ROOT / "text_vectors.json").write_text(text, encoding="utf-8")
