"""The corpus step: documents in; token shards, packing, held-out text and an exact ledger out, as one artifact."""

from dataclasses import dataclass
from pathlib import Path

from onward.artifact import Folders, make_once
from onward.corpus import blocks
from onward.corpus.engine import StartWorkers, processes
from onward.corpus.examine import Examined, Task
from onward.corpus.ledger import Ledger, read_ledger
from onward.corpus.making import Making
from onward.corpus.preparation import Items, Preparation, plan_preparation
from onward.corpus.self_replay import Generate
from onward.corpus.tables import FACTS_FILE
from onward.model.tokenizer import LoadedTokenizer
from onward.progress import Progress, Silent
from onward.recipe import Corpus

_SILENT = Silent()


@dataclass(frozen=True)
class PreparedCorpus:
    """path: the artifact's folder (store.open_corpus reads it). ledger: where every document and token went."""

    path: Path
    fingerprint: str
    ledger: Ledger


def prepare(
    corpus: Corpus,
    *,
    tokenizer: LoadedTokenizer,
    sequence_tokens: int,
    wanted_tokens: int | None,
    seed: int,
    folders: Folders,
    items: Items | None = None,
    generate: Generate | None = None,
    model_fingerprint: str | None = None,
    start_workers: StartWorkers[Task, tuple[Examined, ...]] | None = None,
    workers: int | None = None,
    progress: Progress = _SILENT,
    label: str = "domain",
) -> PreparedCorpus:
    """Prepare a corpus, or return at once when exactly this one is there.

    wanted_tokens: reading stops when so many are kept (None: all; `corpus.tokens` goes before it). items: benchmark
    items to look for. generate and model_fingerprint: needed for self-replay. workers: processes, None for one per
    core; start_workers: an engine of another kind (`ray_engine`); the outcome depends on neither. label: `domain` or
    `general`. Raises UserError for input that its owner can mend.
    """
    preparation = plan_preparation(
        corpus,
        tokenizer=tokenizer,
        sequence_tokens=sequence_tokens,
        wanted_tokens=wanted_tokens,
        seed=seed,
        folders=folders,
        items=items,
        model_fingerprint=model_fingerprint,
        label=label,
    )
    return make(preparation, generate, start_workers or processes(workers), progress)


def make(
    preparation: Preparation,
    generate: Generate | None,
    start: StartWorkers[Task, tuple[Examined, ...]] | None,
    progress: Progress = _SILENT,
) -> PreparedCorpus:
    """Make a planned corpus, going on from the blocks that an interrupted call finished.

    Where another process is making the same, it is waited for; what it has made is used.
    """
    folder, made_from = preparation.folder, preparation.made_from

    def wait() -> None:
        progress.note(f"another process prepares the same text ({preparation.section}): waiting for it")

    def finish(aside: Path) -> None:
        if not (aside / FACTS_FILE).exists():
            Making(preparation, aside, generate, start, progress).all()
        blocks.remove_state(aside)

    make_once(folder, "corpus", made_from, finish, wait, keep_partial=True)
    return PreparedCorpus(folder, folder.name, read_ledger(folder))
