"""Compare scorings of the same items: what was gained, what was lost, and what cannot be told apart."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from onward.analysis.difference import Comparison, Comparisons, Difference, Letters
from onward.analysis.letters import letters
from onward.analysis.paired import Pair, Scored, pair_up, read_scored
from onward.analysis.rows import Resampling, clean_rows, corrected, source_rows, task_rows, text_row
from onward.analysis.wording import sentence


@dataclass(frozen=True)
class _Table:
    """The uncorrected rows of one comparison. clean: as `tasks`, but without the items found in the text."""

    text: list[Difference]
    sources: list[Difference]
    tasks: list[Difference]
    clean: list[Difference]
    letters: tuple[Letters, ...]


def compare(before_folder: Path, after_folder: Path, resamples: int, seed: int) -> Comparison:
    """Compare the scores in two folders (results.json, items.parquet), paired item by item.

    Raises UserError when they did not score the same items, naming what differs.
    """
    return compare_all((before_folder, after_folder), None, resamples, seed).comparisons[0]


def compare_all(
    folders: Sequence[Path],
    names: Sequence[str] | None,
    resamples: int,
    seed: int,
    of_text: Callable[[Pair], Pair] | None = None,
) -> Comparisons:
    """Compare the scores in every folder after the first with those in the first, the base.

    names: of the models, in the order of the folders; None takes those in the scores. Holm's correction is over all
    comparisons together, for held-out texts, their sources and task rows each. Tasks with items that were found in
    the corpora's text are compared a second time without those, in the same family. of_text: takes the documents of a
    held-out text that are compared (None: all). Raises UserError when two did not score the same items, naming what
    differs.
    """
    assert len(folders) > 1, "a comparison is of two or more"
    how = Resampling(resamples, seed)
    base, *others = map(read_scored, folders)
    tables = [_table(base, other, how, of_text) for other in others]
    names = names or [scored.scores.model for scored in (base, *others)]
    text = corrected([table.text for table in tables])
    sources = corrected([table.sources for table in tables])
    tasks = corrected([table.tasks for table in tables])
    clean = corrected([table.clean for table in tables])
    comparisons = [
        assembled(names[0], name, [*text[i], *tasks[i]], clean[i], sources[i], tables[i].letters)
        for i, name in enumerate(names[1:])
    ]
    return Comparisons(names[0], tuple(comparisons))


def _table(base: Scored, other: Scored, how: Resampling, of_text: Callable[[Pair], Pair] | None) -> _Table:
    texts, tasks = pair_up(base, other)
    texts = texts if of_text is None else [of_text(pair) for pair in texts]
    rows = {pair.name: task_rows(pair, how) for pair in tasks}
    clean = rows | {pair.name: clean_rows(pair, how) for pair in tasks if pair.touched.any()}
    return _Table(
        [text_row(pair, how) for pair in texts],
        [row for pair in texts for row in source_rows(pair, how)],
        list(chain(*rows.values())),
        list(chain(*clean.values())),
        tuple(found for found in map(letters, tasks) if found is not None),
    )


def assembled(
    before: str,
    after: str,
    rows: Sequence[Difference],
    clean: Sequence[Difference],
    sources: Sequence[Difference] = (),
    picked: tuple[Letters, ...] = (),
) -> Comparison:
    """Put judged rows together with their sentences; of the clean ones only those that differ are kept."""
    without = tuple(row for row in clean if row.touched)
    sentences = tuple(sentence(row) for row in (*rows, *without))
    return Comparison(before, after, tuple(rows), sentences, without, tuple(sources), picked)
