"""The choice among blends: halves of the held-out text, the rules, and what is told of the test part."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scorings import task_rows, text_rows, write

from onward.analysis.blending import BlendPoint, Rule, blending, choose, is_dev, read_point
from onward.errors import UserError
from onward.evaluation.scores import ItemRow

SHARES = (0.0, 0.5, 1.0)


def scored(
    place: Path, domain: Sequence[float], general: Sequence[float] = (), test: float = 0.0, group_of: int = 1
) -> list[BlendPoint]:
    """Blends with these bits per byte; `test` is added to the middle one's on the test part alone."""
    place.mkdir(exist_ok=True)
    points = []
    for number, share in enumerate(SHARES):
        rows = text_rows("domain", domain[number], 80, group_of)
        if general:
            rows += text_rows("general", general[number], 80, group_of)
        if share == 0.5:
            rows = [row if is_dev(row.group) else harder(row, test) for row in rows]
        points.append(read_point(share, write(place / f"{share}", [*rows, *task_rows("piqa", [True, False] * 20)])))
    return points


def harder(row: ItemRow, bits_per_byte: float) -> ItemRow:
    assert row.nats is not None
    assert row.bytes is not None
    return dataclasses.replace(row, nats=row.nats + bits_per_byte * row.bytes * float(np.log(2)))


def test_halves_are_disjoint_stable_and_by_group(tmp_path: Path) -> None:
    groups = [f"book {number}" for number in range(2000)]
    dev = {group for group in groups if is_dev(group)}
    assert 900 < len(dev) < 1100
    known = [False, True, True, True, True, False, True, True]
    assert [is_dev(f"book {number}") for number in range(8)] == known, "the split is the same for ever"
    (point, *_) = scored(tmp_path, (2.0, 2.0, 2.0), group_of=4)
    (halves,) = point.texts
    rows = text_rows("domain", 2.0, 80, 4)
    for half, count, value in (
        (True, halves.dev_documents, halves.dev),
        (False, halves.test_documents, halves.test),
    ):
        own = [row for row in rows if is_dev(row.group) is half]
        assert count == len(own)
        assert count % 4 == 0, "the four documents of a group stay together"
        nats, size = sum(row.nats or 0 for row in own), sum(row.bytes or 0 for row in own)
        assert value == pytest.approx(nats / np.log(2) / size)


def test_a_document_without_a_group_goes_by_its_id_wherever_its_file_lies(tmp_path: Path) -> None:
    rows = text_rows("domain", 2.0)
    values = []
    for place in ("here/x.jsonl", "there/y.jsonl"):
        own = [dataclasses.replace(row, source=place, group=f"{place} {row.item}") for row in rows]
        values.append(read_point(0.0, write(tmp_path / place[:4], own)).texts)
    assert values[0] == values[1]


def test_text_that_cannot_be_halved_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too little to be halved"):
        read_point(0.0, write(tmp_path / "one", text_rows("domain", 2.0, 40, 40)))


def test_the_rules(tmp_path: Path) -> None:
    points = scored(tmp_path, (2.0, 1.8, 1.7), (2.0, 2.04, 2.4))
    assert choose(points, Rule()).share == 0.5, "-0.2 + 0.04 is less than -0.3 + 0.4"
    assert choose(points, Rule("domain")).share == 1
    within = choose(points, Rule("domain", 0.05))
    assert (within.share, within.admitted) == (0.5, (0.0, 0.5))
    assert choose(points, Rule("domain", 0.01)).share == 0
    assert choose(scored(tmp_path / "a", (2.0, 1.8, 1.7)), Rule()).share == 1, "the domain alone"
    assert choose(scored(tmp_path / "b", (2.0, 2.0, 2.0)), Rule()).share == 0, "of equals the nearest to the base"


def test_the_choice_never_looks_at_the_test_part(tmp_path: Path) -> None:
    domain, general = (2.0, 1.8, 1.7), (2.0, 2.04, 2.4)
    plain = scored(tmp_path / "plain", domain, general)
    for name, change in (("worse", 5.0), ("better", -1.5)):
        changed = scored(tmp_path / name, domain, general, test=change)
        assert changed[1].texts != plain[1].texts
        for rule in (Rule(), Rule("domain"), Rule("domain", 0.05), Rule("domain", 0.01)):
            assert choose(changed, rule) == choose(plain, rule)


def test_what_is_compared_is_the_test_part_alone(tmp_path: Path) -> None:
    points = scored(tmp_path, (2.0, 1.8, 1.7), (2.0, 2.04, 2.4), test=0.5)
    found = blending(("before", "after"), points, Rule(), 300, 0)
    assert found.chosen == 0.5
    with_base, with_adapted = found.comparisons
    assert (with_base.before, with_base.after) == ("before", "blend 0.5")
    assert (with_adapted.before, with_adapted.after) == ("after", "blend 0.5")
    domain = with_base.find("domain")
    assert domain is not None
    halves = points[1].find("domain")
    assert halves is not None
    assert domain.items == halves.test_documents
    assert domain.delta == pytest.approx(0.3)
    assert domain.verdict == "lost"
    piqa = with_base.find("piqa")
    assert piqa is not None
    assert piqa.items == 40, "items of tasks are not chosen by, all of them are told of"
    assert any("Test part, before to blend 0.5: Domain text" in sentence for sentence in found.findings)
    assert found.as_json()["blends"][1]["domain_test"] == pytest.approx(halves.test)


@pytest.mark.parametrize(
    ("domain", "general", "rule", "share", "said"),
    [
        ((2.0, 1.8, 1.7), (2.0, 2.0, 2.0), Rule(), 1, "This is the adapted model itself"),
        ((2.0, 2.1, 2.2), (2.0, 2.0, 2.0), Rule(), 0, "This is the base itself"),
        ((2.0, 1.8, 1.7), (2.0, 2.1, 2.2), Rule("domain", 0.01), 0, "No blend but the base itself keeps general text"),
    ],
)
def test_a_choice_of_an_end_says_so(
    tmp_path: Path, domain: Sequence[float], general: Sequence[float], rule: Rule, share: float, said: str
) -> None:
    found = blending(("before", "after"), scored(tmp_path, domain, general), rule, 100, 0)
    assert found.chosen == share
    assert any(said in sentence for sentence in found.chosen_by)
    assert [(c.before, c.after) for c in found.comparisons] == [("before", "after")]


def test_without_general_text_the_choice_is_told_as_of_the_domain_alone(tmp_path: Path) -> None:
    alone = blending(("before", "after"), scored(tmp_path / "alone", (2.0, 1.8, 1.7)), Rule(), 100, 0).chosen_by
    assert "(the lowest bits per byte of the domain)" in alone[0]
    assert alone[1].startswith("Forgetting was not measured: no general text was scored")
    both = scored(tmp_path / "both", (2.0, 1.8, 1.7), (2.0, 2.04, 2.4))
    told = " ".join(blending(("before", "after"), both, Rule(), 100, 0).chosen_by)
    assert "(the smallest sum of relative changes of bits per byte, domain and general text)" in told
    assert "Forgetting was not measured" not in told


@pytest.mark.parametrize(("test", "is_said"), [(0.06, True), (0.0, False)])
def test_a_limit_that_does_not_hold_on_the_test_part_is_told(tmp_path: Path, test: float, is_said: bool) -> None:
    points = scored(tmp_path, (2.0, 1.8, 1.7), (2.0, 2.02, 2.4), test=test)
    found = blending(("before", "after"), points, Rule("domain", 0.02), 100, 0)
    assert found.chosen == 0.5
    said = "The limit does not hold on the test part: general text is 4.0 % above the base there, more than 2.0 %."
    assert (said in found.chosen_by) is is_said
