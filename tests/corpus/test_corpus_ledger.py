from dataclasses import replace
from pathlib import Path

import pytest

from onward.corpus.ledger import Count, Ledger, Tally, read_ledger


def ledger() -> Ledger:
    tally = Tally(
        read=Count(10, 1000), duplicate=Count(2, 200), held_out=Count(1, 50), kept=Count(4, 600), kept_tokens=90
    )
    tally.drop("quality: too few lines", 100)
    tally.drop("quality: too few lines", 50)
    tally.drop("unreadable: broken JSON", 0)
    tally.name_place("x.jsonl:7", "unreadable: broken JSON")
    return tally.close(sequences=3, sequence_tokens=32, packed_tokens=90, padding_tokens=6)


def test_the_ledger_survives_the_disk(tmp_path: Path) -> None:
    ledger().save(tmp_path)
    assert read_ledger(tmp_path) == ledger()


def test_rows_show_what_holds_something() -> None:
    assert ledger().rows() == [
        ("read", 10, 1000),
        ("quality: too few lines", 2, 150),
        ("unreadable: broken JSON", 1, 0),
        ("duplicate", 2, 200),
        ("held out", 1, 50),
        ("kept", 4, 600),
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"read": Count(11, 1000)},
        {"read": Count(10, 1001)},
        {"duplicate": Count(1, 200)},
        {"contaminated": Count(1, 0)},
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
    assert tally.num_unreadable == 100
    assert len(tally.unreadable) == 20
