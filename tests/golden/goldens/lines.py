"""Mixed text for the tokenizers: about five thousand lines of our own, the same on every machine."""

import random
import unicodedata

from . import corpus

CODE = ["for (int i = 0; i < n; ++i) {", "    return x->y[i] * 0x1F;", "\tif not self._done: raise ValueError(f'{x!r}')", "#include <vector>", "}\r\n",
        "SELECT a, b FROM t WHERE c >= 10;", "let v: Vec<u8> = vec![1, 2];", "<div class=\"a\">&amp;</div>", "x = {'k': [1, 2.5e-3]}  # note", "a&&b||!c"]
EMOJI = ["😀", "👍🏽", "👩‍👩‍👧‍👦", "🇰🇷", "❤️", "🏳️‍🌈", "☺", "🫠", "1️⃣", "🧑🏻‍🚀"]
CONTROL = ["\x00", "\x01", "\x07", "\x1b[0m", "\x7f", "\x85", "\u200b", "\u200d", "\u202e", "\ufeff", "\ufffd", "\u2028", "\u180e", "\U000e0001"]
SPACES = [" ", "  ", "   ", "\t", "\n", "\n\n", " \n ", "\r\n", "\u00a0", "\u2003", "\u3000", " " * 17, "\n" * 9, "\t\t\t", " \t \n\t "]
MARKS = ["e\u0301", "a\u0308\u0304", "n\u0303", "\u1100\u1161\u11a8", "\u0915\u094d\u0937", "o\u0323\u0302", "s\u0307\u0323", "\u212b", "ﬁ", "Å", "ñ", "ệ", "\u0301"]
DIGITS = ["7", "42", "007", "3.14", "1,000,000", "2024-06-30", "٣٤", "१२", "½", "Ⅷ", "①②", "1234567890" * 3]
CONTRACTIONS = ["don't", "I'LL", "we've", "it'S", "you're", "'s", "she'd", "O'Neil", "'TIS", "'ſ"]


def words(rng: random.Random, first: int, last: int, most: int = 6) -> str:
    """A word of characters of one range of Unicode."""
    return "".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, most)))


def script(rng: random.Random) -> str:
    ranges = [(0xAC00, 0xD7A3), (0x4E00, 0x9FA5), (0x0621, 0x064A), (0x0410, 0x044F), (0x0391, 0x03A1), (0x05D0, 0x05EA), (0x0E01, 0x0E30), (0x3041, 0x3096),
              (0x00C0, 0x00D6), (0x1F600, 0x1F64F), (0x2190, 0x21FF), (0x10348, 0x10348), (0x20000, 0x20100)]
    return words(rng, *rng.choice(ranges))


def atom(rng: random.Random, specials: list[str]) -> str:
    kinds = [lambda: rng.choice(corpus.SENTENCES).split(" ")[rng.randint(0, 3)], lambda: rng.choice(corpus.COLOURS), lambda: rng.choice(corpus.THINGS),
             lambda: script(rng), lambda: rng.choice(CODE), lambda: rng.choice(EMOJI), lambda: rng.choice(CONTROL), lambda: rng.choice(MARKS),
             lambda: rng.choice(DIGITS), lambda: rng.choice(CONTRACTIONS), lambda: rng.choice(SPACES), lambda: rng.choice(specials),
             lambda: unicodedata.normalize("NFD", words(rng, 0xAC00, 0xD7A3)), lambda: rng.choice("!?.,;:()[]{}<>|/\\\"'`~@#$%^&*-_=+")]
    return rng.choice(kinds)()


def lines(specials: list[str], count: int = 5200) -> list[str]:
    """`count` different lines; `specials` are written among the text."""
    rng = random.Random(20240630)
    out = dict.fromkeys(corpus.SENTENCES + [a + b for a in specials for b in specials])
    while len(out) < count:
        glue = rng.choice([" ", " ", " ", "", "  ", "\n"])
        out[glue.join(atom(rng, specials) for _ in range(rng.randint(1, 9)))] = None
    return list(out)[:count]
