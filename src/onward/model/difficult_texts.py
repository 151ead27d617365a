"""Texts on which two implementations of one tokenizer differ, when they differ at all."""

import unicodedata
from functools import lru_cache

_WRITTEN = (
    "",
    " ",
    "   ",
    " starts with one space",
    "  two  spaces,   three   and a trailing one ",
    "\ttab\tand\t\ttwo",
    "line\nline\n\nline\n\n\n   indented\n\t\ttwice\r\nwindows\r\rmac\r\n\r\n",
    " \n \n\t \r\n   x",
    "Plain words, and a number 12,345.67 or 1e-9; 2024-01-31; 0x1F; 007; 1234567890123456789012345678901234567890",
    "don't, we'll, I'VE, they'd; it's 'quoted' ''twice'' and O'Brien's \u2019s",
    "def f(x):\n    return {**x, 'a': [1, 2]}  # comment\n\n\nclass A(B): ...\n",
    "https://example.org/a_b-c?d=%20e&f#g user@example.org C:\\Temp\\x.txt",
    "ALLCAPS CamelCase snake_case kebab-case MiXeD x1y2z3",
    "...!!!???---===***~~~```<<<>>>((()))[[[]]]{{{}}}$$$\\\\\\///|||^^^",
    "na\u00efve caf\u00e9 \u2014 \u201cquoted\u201d \u2026 \u00bd \u2155 \u2460 \u2122 \u212b \ufb01 \ufb03",
    "e\u0301 o\u0308 a\u0323\u0302 \u1e9b\u0323 \u0300alone \u0301\u0302\u0303\u0304 q\u0307\u0323",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8\u3001\u4e2d\u6587\u3002\ud55c\uad6d\uc5b4 "
    "\u3000\uff21\uff22\uff11",
    "\u0420\u0443\u0441\u0441\u043a\u0438\u0439 \u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac "
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u05e2\u05d1\u05e8\u05d9\u05ea "
    "\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22 \u0939\u093f\u0928\u094d\u0926\u0940",
    "\U0001f642\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f3f3\ufe0f\u200d\U0001f308 "
    "\U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd 1\ufe0f\u20e3",
    "\x00\x01\x02\x1b[31m\x7f\x80\x85\x9f\u00a0\u00ad\u1680\u2000\u200b\u200d\u2028\u2029\u202f\u205f\u2060\ufeff\ufffd",
    "\ue000\uf8ff\U000f0000\U0010fffd\uffff\U0001ffff",
    "\u2581 \u2581word \u2581\u2581 \u0120x \u010ay",
    "<s>text</s> <unk> <pad> [INST] [CLS] <0x0A> <|endoftext|> <|im_start|>user<|im_end|> <start_of_turn>",
    "a" * 3000,
    "ab" * 1500,
    "The" * 1000,
    "1" * 1000,
    " " * 1000,
    "\n" * 1000,
    "\t" * 300,
    "\u00a0" * 300,
    "-" * 1000,
    "=-" * 500,
    "\u00e9" * 500,
    "\u8a9e" * 500,
    "\U0001f642" * 200,
    " x" * 1000,
    "pneumonoultramicroscopicsilicovolcanoconiosis" * 20,
)
_HIGHEST_MARK, _LOWEST_MARK = "\u0345", "\u0334"
"""Marks of the combining classes 240 and 1: beside them every other mark changes places when it is composed."""
_LAST = 0x20000
"""Above are rare ideographs, which tokenizers treat alike, and what no text holds."""
_TAKEN_LETTERS = 16
"""Of letters without case (ideographs, syllables, abjads), tens of thousands treated alike, every 16th is taken."""


def difficult_texts() -> tuple[str, ...]:
    """Return short texts of every kind that is known to be treated differently.

    Runs of white space, digits, control characters, combining marks, emoji, scripts, special tokens that are spelt
    out, very long words.
    """
    return _WRITTEN


@lru_cache(maxsize=1)
def texts_by_character() -> dict[str, str]:
    """Return, for some 17,000 characters of Unicode, a text that shows how each is treated; together 0.3 MB.

    A character stands between letters, and alone; a mark also beside other marks; a composed one also taken apart.
    Libraries know different versions of Unicode, so the newest characters are where they differ.
    """
    return {chr(code): _around(chr(code)) for code in range(0x80, _LAST) if _is_taken(code)}


def _is_taken(code: int) -> bool:
    kind = unicodedata.category(chr(code))
    return kind not in ("Cn", "Co", "Cs") and (kind != "Lo" or code % _TAKEN_LETTERS == 0)


def _around(character: str) -> str:
    text = f"a{character}b {character}"
    if unicodedata.category(character).startswith("M"):
        text += f" e{_HIGHEST_MARK}{character} o{character}{_LOWEST_MARK}"
    apart = unicodedata.normalize("NFD", character)
    return text if apart == character else f"{text} {apart}"
