"""The making of one corpus: tasks are dealt out, what comes back is sorted, and at the end the whole is closed."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from onward.artifact import write_json
from onward.corpus import blocks
from onward.corpus.contamination.index import ItemIndex, build_index
from onward.corpus.documents import NO_TEXT_IN_PDF, NOT_UTF8, Document, Fields, no_field
from onward.corpus.duplicates.seen import Seen
from onward.corpus.engine import StartWorkers, in_order
from onward.corpus.examine import Examined, Rules, Task, examine
from onward.corpus.ledger import Tally
from onward.corpus.pace import Pace
from onward.corpus.preparation import Preparation
from onward.corpus.reading.chunks import Position, read_chunks, ready_chunks
from onward.corpus.reading.sources import read_source
from onward.corpus.samples import describe_samples
from onward.corpus.self_replay import Generate, SampleLog
from onward.corpus.sorting import Sorter
from onward.corpus.tables import FACTS_FILE, HELD_OUT_FILE, write_held_out
from onward.corpus.tokenise import Engine, choose_engine
from onward.errors import UserError, nearest
from onward.model.tokenizer import save_tokenizer
from onward.progress import Progress
from onward.recipe import format_share

HOPELESS_RECORDS = 1000
"""When so many records are read and none was readable, reading stops: the rest will be the same."""
SEEN_FILE = "seen.npy"
"""Keys of all documents, for corpora that are deduplicated against this one."""
_ADVICE = {
    NOT_UTF8: "give the source its encoding (`encoding: cp1252`)",
    NO_TEXT_IN_PDF: "run OCR over scanned pages",
    "unreadable: password-protected": "remove the passwords",
}
_KNOBS = {
    "tokens: too few bytes per token": "minimum_bytes_per_token: null",
    "tokens: too many unknown": "maximum_unknown_tokens: 99%",
}
"""What lets documents through that were dropped for such a reason; for others it is the rules of quality."""
_SAMPLE_DOCUMENTS = 200
"""Documents on which a fast tokenizer must equal the reference before it is used."""


class Making:
    """The making of one corpus in the folder `aside`."""

    def __init__(
        self,
        preparation: Preparation,
        aside: Path,
        generate: Generate | None,
        start: StartWorkers[Task, tuple[Examined, ...]] | None,
        progress: Progress,
    ) -> None:
        self.job, self.aside, self.generate, self.start, self.progress = preparation, aside, generate, start, progress
        corpus = preparation.corpus
        contamination = corpus.contamination
        self.items: ItemIndex | None = None
        if preparation.items is not None and contamination is not None:
            self.items = build_index(preparation.items.load(), contamination)
        (aside / blocks.STATE).mkdir(exist_ok=True)
        self.engine = self._engine()
        duplicates = corpus.duplicates
        near = None if duplicates is None else duplicates.near
        self.rules = Rules(
            unicode=corpus.unicode,
            quality=corpus.quality,
            near=near,
            looks_at_passages=duplicates is not None and duplicates.covered is not None,
            contamination=contamination,
            items=self.items,
            held_out_share=Fraction(0) if preparation.held_out else corpus.held_out.share,
            tokenizer=preparation.tokenizer,
            engine=self.engine,
            maximum_unknown=corpus.maximum_unknown_tokens,
            minimum_bytes_per_token=corpus.minimum_bytes_per_token,
        )
        self.seen = Seen(
            aside / blocks.STATE / "seen",
            self.rules.key_columns,
            blocks=len(blocks.read_states(aside)),
            exact=duplicates is not None and duplicates.exact,
            covered=None if duplicates is None else duplicates.covered,
            against=[Path(path) / SEEN_FILE for path in duplicates.against] if duplicates else [],
        )
        self.sorter = Sorter(
            aside,
            vocabulary_size=preparation.tokenizer.vocabulary_size,
            sequence_tokens=preparation.sequence_tokens,
            packing=corpus.packing,
            block_tokens=corpus.block_tokens,
            wanted_tokens=preparation.wanted_tokens,
            seen=self.seen,
            item_names=self.items.names if self.items is not None else (),
            action=contamination.action if contamination else "report",
        )

    def all(self) -> None:
        """Read and sort everything, then write what is known only at the end."""
        job, tally = self.job, self.sorter.tally
        for path in (path for inputs in (*job.training, *job.held_out) for path in inputs.skipped):
            self.progress.note(f"{path}: not read, its suffix is none of a text's")
        unit = "tokens wanted" if job.wanted_tokens else "tokens"
        self.progress.begin(f"preparing {job.section}", job.wanted_tokens, unit)
        if self.sorter.number_of_blocks:
            self.progress.note(f"going on after {self.sorter.number_of_blocks} finished blocks")
        try:
            self._sort_all()
            self.sorter.finish_block()
            _refuse_unreadable(tally, self.sorter.fields, job)
            _refuse_nothing_kept(tally, job)
            write_held_out(blocks.spills(self.aside, self.sorter.number_of_blocks), self.aside / HELD_OUT_FILE)
            self.seen.close(self.aside / SEEN_FILE)
        except BaseException:
            self.sorter.abandon()
            self.seen.abandon()
            raise
        ledger = tally.close(job.sequence_tokens)
        ledger.save(self.aside)
        save_tokenizer(job.tokenizer, self.aside / "tokenizer")
        if job.corpus.self_replay is not None:
            describe_samples(self.aside, self.sorter.number_of_blocks, self._samples(), job.tokenizer).save(self.aside)
        facts = {
            "tokenizer_engine": {"name": self.engine.name, "reason": self.engine.reason},
            "blocks": self.sorter.number_of_blocks,
            "packing": job.corpus.packing,
            "histograms": self.sorter.histograms.as_json(),
        }
        write_json(self.aside / FACTS_FILE, facts)
        # The held-out part of other text (corpora.NAME) is read by nothing.
        if not ledger.held_out.documents and job.section in ("corpus", "general"):
            todo = f"raise {job.section}.held_out.share"
            self.progress.note(f"{job.section}: no document fell into the held-out share; {todo}")

    def _sort_all(self) -> None:
        """Read, examine and sort until the text or the wanted tokens are at an end."""
        sorter, pace = self.sorter, Pace(self.sorter.tally)
        if sorter.is_full:
            return
        work = partial(examine, rules=self.rules)
        tasks = self._tasks(sorter.position)
        with closing(in_order(tasks, work, self.start, lambda task: task.chunk.size_bytes)) as results:
            for task, examined in results:
                sorter.take(examined, task.position)
                tally = sorter.tally
                if tally.num_unreadable == tally.read.documents >= HOPELESS_RECORDS:
                    _refuse_unreadable(tally, sorter.fields, self.job)
                self.progress.advance(tally.kept_tokens, pace.facts(tally))
                if sorter.is_full:
                    return
        if self.job.wanted_tokens is not None:
            tally = sorter.tally
            self.progress.advance(tally.kept_tokens, f"the text is at its end  {pace.facts(tally)}")

    def _tasks(self, after: Mapping[str, Any] | None) -> Iterator[Task]:
        """Yield what is to be read: held-out text from elsewhere, the training text, then sampled text."""
        job = self.job
        places = [("held_out", n, inputs) for n, inputs in enumerate(job.held_out)]
        places += [("training", n, inputs) for n, inputs in enumerate(job.training)]
        begun = after is None
        for part, number, inputs in places:
            at = None
            if not begun and after is not None:
                if (part, number) != (after["part"], after["source"]):
                    if after["part"] == "sampled" or part != after["part"] or number < after["source"]:
                        continue
                else:
                    at = Position(**after["at"])
                begun = True
            fields = Fields(inputs.source.text, inputs.source.group)
            for chunk, position in read_chunks(inputs, at):
                yield Task(chunk, fields, part == "held_out", {"part": part, "source": number, "at": asdict(position)})
        if job.corpus.self_replay is not None:
            assert self.generate is not None, "self-replay needs a model to sample from"
            documents = self._samples().documents(job.corpus.self_replay, self.generate, job.tokenizer, job.seed)
            done = after["at"] if after is not None and after["part"] == "sampled" else 0
            # What was sampled before is read from the log, and passed over as far as it is sorted.
            for number, chunk in enumerate(ready_chunks(documents), start=1):
                if number > done:
                    yield Task(chunk, Fields("text", None), False, {"part": "sampled", "source": 0, "at": number})

    def _samples(self) -> SampleLog:
        return SampleLog(self.aside / blocks.STATE / "samples.jsonl")

    def _engine(self) -> Engine:
        """Choose the tokenizer's engine by the first documents of the text; a restart comes to the same choice."""
        items = (item for inputs in self.job.training for item in read_source(inputs))
        texts = (item.text for item in items if isinstance(item, Document))
        return choose_engine(self.job.tokenizer, list(islice(texts, _SAMPLE_DOCUMENTS)))


def _refuse_unreadable(tally: Tally, fields: Mapping[str, None], job: Preparation) -> None:
    """Raise UserError when more records are unreadable than the recipe allows."""
    limit = job.corpus.maximum_unreadable
    if tally.num_unreadable <= limit * tally.read.documents:
        return
    for source in (*job.corpus.sources, *job.corpus.held_out.sources):
        if tally.dropped.get(no_field(source.text)) == tally.read:
            # A guess that is wrong (`id`) would be trained on, so there is none without a reason.
            close = nearest(source.text, list(fields)) or ("text" if "text" in fields else None)
            raise UserError(
                f"no record has the field `{source.text}`",
                tally.unreadable[0].rpartition(": unreadable")[0],
                f"fields: {', '.join(fields) or 'none'}",
                todo=f"name the field that holds the document: `text: {close}`" if close else None,
            )
    share = format_share(Fraction(round(1000 * tally.num_unreadable / tally.read.documents), 1000))
    advice = [text for reason, text in _ADVICE.items() if any(rule.startswith(reason) for rule in tally.dropped)]
    raise UserError(
        "too many records cannot be read",
        "; ".join(tally.unreadable[:5]),
        f"{tally.num_unreadable:,} of {tally.read.documents:,} ({share})",
        f"at most {format_share(limit)}",
        "; ".join(
            [
                *advice,
                f"mend or remove them, or raise {job.section}.maximum_unreadable; fewer are counted and passed over",
            ]
        ),
    )


def _refuse_nothing_kept(tally: Tally, job: Preparation) -> None:
    """Raise UserError, with what dropped the documents, when none is left to train on."""
    if tally.kept.documents:
        return
    raise nothing_kept("no document is left to train on", job, tally)


def nothing_kept(what: str, job: Preparation, tally: Tally) -> UserError:
    """Return the error of a corpus that nothing is left of: what dropped the documents, and the knob of most of it."""
    section, is_sampled = job.section, job.corpus.self_replay is not None
    where = f"{section}.sources: {', '.join(source.path for source in job.corpus.sources)}"
    todo = "give more documents"
    if tally.dropped:
        most = max(tally.dropped, key=lambda reason: tally.dropped[reason].documents)
        loosened = next((knob for reason, knob in _KNOBS.items() if most.startswith(reason)), "quality: none")
        todo = f"loosen what dropped them, e.g. {section}.{loosened}"
    elif is_sampled:
        todo = f"draw other samples ({section}.self_replay.temperature), or more ({section}.self_replay.tokens)"
    got = "; ".join(tally.losses()) or "no record at all"
    return UserError(what, f"{section}, sampled from the base" if is_sampled else where, got, todo=todo)
