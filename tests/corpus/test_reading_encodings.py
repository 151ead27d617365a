import gzip
import json
import unicodedata
from pathlib import Path

import pytest

from onward.corpus.documents import Document, Item, Unreadable
from onward.corpus.reading.encodings import decoded_page, is_ascii_based
from onward.corpus.reading.inputs import Inputs
from onward.corpus.reading.sources import find_inputs, read_source
from onward.corpus.reading.unicode import clean_text
from onward.recipe import Source

GERMAN = "Am nächsten Morgen öffnete der Bäcker früh sein Geschäft, weil für das große Fest noch Brötchen fehlten. "
RUSSIAN = "На следующее утро пекарь рано открыл свою лавку, потому что для большого праздника не хватало хлеба. "
CHINESE = (
    "第二天早晨，面包师很早就开了店，因为大节日的面包还不够。孩子们听到钟声，很快穿过了街道，去河边看望他们的朋友。"
)
CZECH = "Příliš žluťoučký kůň úpěl ďábelské ódy, zatímco děti běžely přes řeku k dřevěnému mostu a volaly na přátele. "
JAPANESE = "翌朝、パン屋は早くから店を開けた。大きなお祭りのためのパンがまだ足りなかったからだ。"
ENGLISH = "The café’s owner — a naïve fellow — said “no”. A heron stood in the shallow water and waited for a fish. "


def read(path: Path, content: bytes) -> list[Item]:
    path.write_bytes(content)
    return list(read_source(find_inputs(Source(path=str(path)))))


def text_of(path: Path, content: bytes) -> str:
    (item,) = read(path, content)
    assert isinstance(item, Document)
    return item.text


def reason_of(path: Path, content: bytes) -> str:
    (item,) = read(path, content)
    assert isinstance(item, Unreadable)
    assert item.where == str(path)
    return item.reason


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["x.txt", "x.jsonl", "x.json"])
def test_byte_order_marks_say_the_encoding(tmp_path: Path, encoding: str, name: str) -> None:
    line = json.dumps({"text": GERMAN}, ensure_ascii=False)
    written = {"x.txt": GERMAN, "x.jsonl": f"{line}\n", "x.json": f"[\n{line}]"}[name]
    assert text_of(tmp_path / name, written.encode(encoding)) == GERMAN


def test_a_broken_utf16_file_is_named(tmp_path: Path) -> None:
    assert reason_of(tmp_path / "x.txt", GERMAN.encode("utf-16") + b"x") == "unreadable: not utf-16"
    lines = "".join(json.dumps({"text": str(n)}) + "\n" for n in range(3))
    items = read(tmp_path / "x.jsonl", lines.encode("utf-16") + b"x")
    assert [type(item) for item in items] == [Document, Document, Document, Unreadable]
    assert items[-1] == Unreadable(f"{tmp_path / 'x.jsonl'}:4", "unreadable: not utf-16")


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (GERMAN, "cp1252"),
        (GERMAN, "latin-1"),
        (ENGLISH, "cp1252"),
        (CZECH, "cp1250"),
        (RUSSIAN, "cp1251"),
        (RUSSIAN, "koi8-r"),
        (RUSSIAN, "iso8859-5"),
        (CHINESE, "gb18030"),
    ],
)
def test_an_encoding_beyond_doubt_is_read(tmp_path: Path, text: str, encoding: str) -> None:
    assert text_of(tmp_path / "x.txt", (text * 4).encode(encoding)) == text * 4


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("Grüße\n".encode("latin-1"), "unreadable: not UTF-8"),  # too little to tell
        (GERMAN.encode("latin-1"), "unreadable: not UTF-8"),  # ten bytes beyond ASCII are little, too
        ((CZECH * 3).encode("iso8859-2"), "unreadable: not UTF-8"),  # cp1250 is as good
        ((JAPANESE * 3).encode("euc_jp"), "unreadable: not UTF-8"),  # the detector says Big5
        ((GERMAN * 5).encode() + (GERMAN * 3).encode("latin-1"), "unreadable: mixed encodings"),
        ((RUSSIAN * 3).encode() + (GERMAN * 5).encode("latin-1"), "unreadable: mixed encodings"),
        (
            "".join(f"{GERMAN}\n" for _ in range(5)).encode() + (GERMAN * 90).encode("latin-1"),
            "unreadable: mixed encodings",
        ),
        (b"\x7fELF\x02\x01\0\0\0\0\0\0\xff\xfe" * 50, "unreadable: binary content"),
        (b"plain ASCII, \0\0\0\0 but not text", "unreadable: binary content"),
        (GERMAN.encode("utf-16-le"), "unreadable: binary content"),
    ],
)
def test_what_is_in_doubt_is_counted_not_guessed(tmp_path: Path, content: bytes, reason: str) -> None:
    assert reason_of(tmp_path / "x.txt", content) == reason


def test_a_few_nul_characters_are_removed_and_other_controls_stay(tmp_path: Path) -> None:
    text = GERMAN * 3 + "\0ffen\f\x1b[0m"
    assert text_of(tmp_path / "x.txt", text.encode()) == text.replace("\0", "")
    assert text_of(tmp_path / "x.jsonl", json.dumps({"text": text}).encode()) == text.replace("\0", "")
    many = read(tmp_path / "y.jsonl", json.dumps({"text": "\0a" * 20}).encode())
    assert many == [Unreadable(f"{tmp_path / 'y.jsonl'}:1", "unreadable: binary content")]


def test_lone_surrogates_and_nan_are_read(tmp_path: Path) -> None:
    line = rb'{"id": "\udc00", "text": "cut emoji \ud83d and whole \ud83d\ude00", "score": NaN}'
    (item,) = read(tmp_path / "x.jsonl", line)
    assert item == Document("�", "cut emoji � and whole 😀", str(tmp_path / "x.jsonl"))


def test_the_recipe_names_the_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.jsonl"
    for encoding, text in (("iso8859-2", CZECH), ("utf-16-le", CHINESE), ("cp037", "EBCDIC: Grüße"), ("gbk", CHINESE)):
        monkeypatch.setattr(Inputs, "encoding", encoding)
        written = "".join(json.dumps({"text": text[n:]}, ensure_ascii=False) + "\n" for n in range(5))
        items = read(path, written.encode(encoding))
        assert [item.text for item in items if isinstance(item, Document)] == [text[n:] for n in range(5)]
    monkeypatch.setattr(Inputs, "encoding", "cp1253")
    good, bad, last = read(tmp_path / "x.jsonl", b'{"text": "\xe1"}\n{"text": "\xaa"}\n{"text": "x"}')
    assert isinstance(good, Document)
    assert good.text == "α"
    assert bad == Unreadable(f"{tmp_path / 'x.jsonl'}:2", "unreadable: not cp1253")
    assert isinstance(last, Document)
    assert text_of(tmp_path / "x.txt", b"\xe1") == "α"


def test_lines_are_cut_before_decoding_only_where_that_is_right() -> None:
    assert all(map(is_ascii_based, ("latin-1", "cp1252", "gb18030", "shift_jis", "big5", "koi8-r")))
    assert not any(map(is_ascii_based, ("utf-16", "utf-32-le", "cp037", "utf-7")))


def test_a_page_is_read_in_the_encoding_that_it_declares() -> None:
    page = '<html><head><meta charset="{}"></head><p>Grüße – €</p></html>'
    assert decoded_page(page.format("iso-8859-1").encode("cp1252"), None) == page.format("iso-8859-1")
    assert decoded_page(page.format("latin-1").encode(), None) == page.format("latin-1")  # UTF-8 whatever it says
    japanese = f"<?xml version='1.0' encoding='euc-jp'?><p>{JAPANESE}</p>"
    assert decoded_page(japanese.encode("euc-jp"), None) == japanese


def test_unicode_is_composed_or_repaired_or_left() -> None:
    apart = unicodedata.normalize("NFD", GERMAN)
    assert clean_text(apart, "nfc") == GERMAN
    assert clean_text(apart, None) is apart
    assert clean_text(ENGLISH, "nfc") is ENGLISH
    mojibake = ENGLISH.replace("”", "!").encode().decode("cp1252") + "&amp; ﬁn ＡＢ\r\nnext"
    assert clean_text(mojibake, "repair") == ENGLISH.replace("”", "!") + "&amp; ﬁn ＡＢ\r\nnext"
    assert clean_text(mojibake, "nfc") == mojibake


def test_compressed_text_is_detected_too(tmp_path: Path) -> None:
    assert text_of(tmp_path / "x.md.gz", gzip.compress((GERMAN * 3).encode("cp1252"))) == GERMAN * 3
