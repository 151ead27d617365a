from dataclasses import asdict, replace
from pathlib import Path

import orjson
import pytest

from onward.corpus.ledger import Count, Ledger, Tally, read_ledger


def tally() -> Tally:
    """Ten documents: two of 150 bytes dropped, one unreadable, two and one repeated, one held out, three kept."""
    tally = Tally(
        read=Count(10, 1000),
        duplicate=Count(2, 200),
        near_duplicate=Count(1, 100),
        held_out=Count(1, 50),
        kept=Count(3, 480),
        kept_tokens=90,
        packed_tokens=90,
        padding_tokens=6,
        sequences=3,
    )
    tally.drop("quality: too few lines", Count(1, 100))
    tally.drop("quality: too few lines", Count(1, 50))
    tally.drop("unreadable: broken JSON", Count(1, 0))
    tally.trim("lines taken out (c4)", Count(2, 20))
    tally.name_place("x.jsonl:7", "unreadable: broken JSON")
    return tally


def ledger() -> Ledger:
    return tally().close(sequence_tokens=32)


def test_a_tally_survives_the_disk() -> None:
    assert Tally.restored(orjson.loads(orjson.dumps(asdict(tally())))) == tally()


def test_the_ledger_survives_the_disk(tmp_path: Path) -> None:
    ledger().save(tmp_path)
    assert read_ledger(tmp_path) == ledger()


def test_rows_show_what_holds_something() -> None:
    assert ledger().rows() == [
        ("read", 10, 1000),
        ("quality: too few lines", 2, 150),
        ("unreadable: broken JSON", 1, 0),
        ("duplicate", 2, 200),
        ("near-duplicate", 1, 100),
        ("held out", 1, 50),
        ("lines taken out (c4)", 2, 20),
        ("kept", 3, 480),
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"read": Count(11, 1000)},
        {"read": Count(10, 1001)},
        {"duplicate": Count(1, 200)},
        {"near_duplicate": Count(1, 101)},
        {"contaminated": Count(1, 0)},
        {"trimmed": {"lines taken out (c4)": Count(2, 21)}},
        {"dropped": {}},
        {"kept_tokens": 91},
        {"cut_tokens": 1},
        {"padding_tokens": 7},
        {"sequences": 4},
    ],
)
def test_any_single_change_is_noticed(change: dict[str, object]) -> None:
    with pytest.raises(AssertionError):
        replace(ledger(), **change).check()  # type: ignore[arg-type]


def test_only_the_first_places_are_named() -> None:
    tally = Tally()
    for line in range(100):
        tally.name_place(f"x.jsonl:{line}", "unreadable: broken JSON")
    assert len(tally.unreadable) == 20
