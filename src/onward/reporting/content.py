"""What the report says, before it is a page: sentences, tables and facts, all formatted for people."""

from collections.abc import Sequence
from dataclasses import dataclass

from onward.analysis import Comparison, sentence
from onward.analysis.wording import task_tally
from onward.recipe import format_seconds, format_tokens, remedy_words
from onward.reporting.figures import Figure
from onward.reporting.run_files import RunFiles
from onward.reporting.summary import StageSummary

NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class Table:
    """A table of text. numeric: which columns are set to the right. verdict: the column that is coloured, if any."""

    caption: str
    headers: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[str, ...], ...]
    verdict: int | None = None


@dataclass(frozen=True)
class FactList:
    """Named facts under a heading."""

    heading: str
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class CorpusSection:
    """A corpus: its ledgers, figures, tables of what was found, and documents to read (examples).

    role: its name in the run (`domain`), for the anchors of its parts.
    """

    heading: str
    role: str
    ledgers: tuple[Table, ...]
    figures: tuple[Figure, ...]
    tables: tuple[Table, ...]
    examples: tuple[Table, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Content:
    """The whole report in reading order; HTML and Markdown only dress it."""

    name: str
    headline: str
    sentences: tuple[str, ...]
    notes: tuple[str, ...]
    comparisons: tuple[Table, ...]
    reading_help: str
    details: tuple[Table, ...]
    forests: tuple[Figure, ...]
    run: FactList
    training: Figure | None
    training_notes: tuple[str, ...]
    corpora: tuple[CorpusSection, ...]
    checkpoints: Table | None
    environment: FactList
    fingerprints: FactList
    recipe: str


READING_HELP = (
    "Bits per byte says how many bits the model needs for a byte of text it never saw: lower is better, and models "
    "with different tokenizers can be compared. Every comparison is of the same documents or questions before and "
    "after. Gained and lost are said only where the 95 % interval of the difference excludes zero and the test of no "
    "change holds after Holm's correction over all rows of its kind (p below 0.05): McNemar's exact test, in which "
    "questions on one passage or subject, and documents of one group, change together. At chance: neither score can "
    "be told from guessing (or, where options are letters, from picking them as often without looking). Not "
    "distinguishable: the difference may well be zero. Where questions of a task were found in the corpora's text, a "
    "second row is without them, and its verdict is the one to go by."
)


def comparison_table(stage: StageSummary) -> Table:
    """Return the before/after table of a stage; the column of flips only where tasks were scored."""
    tasks = any(row.flips for row in stage.rows)
    headers = ["measure", "metric", "items", "before", "after", "change", "95 % interval"]
    headers += ["p (Holm)", "to right / to wrong"] if tasks else ["p (Holm)"]
    body = []
    for row in stage.rows:
        extra = [row.p_value, row.flips] if tasks else [row.p_value]
        body.append(
            (row.measure, row.metric, row.items, row.before, row.after, row.change, row.interval, *extra, row.verdict)
        )
    numeric = (False, False, *(True for _ in headers[2:]), False)
    return Table(stage.title, (*headers, "verdict"), numeric, tuple(body), verdict=len(headers))


def finding_sentences(comparison: Comparison) -> tuple[str, ...]:
    """Say the text differences and every task that changed, then count the tasks by verdict.

    A task some of whose items were found in the text is said and counted without those, and said with them where
    that gives another verdict.
    """
    rows = []
    for difference in comparison.differences:
        clean = comparison.clean(difference)
        rows += [difference] if clean is None or clean.verdict != difference.verdict else []
        rows += [] if clean is None else [clean]
    shown = [d for d in rows if d.is_text or d.verdict in ("gained", "lost") or d.touched]
    tally = task_tally([comparison.clean(difference) or difference for difference in comparison.differences])
    return (*map(sentence, shown), *([tally] if tally else []))


def missing_notes(run: RunFiles) -> tuple[str, ...]:
    """Say which parts of the run are not there, and so not in the report."""
    notes = []
    done = {tokens for tokens, _ in run.stage_scores}
    stages = run.recipe.training.stages
    finished = any(event.get("event") == "finished" for event in run.events)
    if not run.metrics:
        notes.append("Training has not started.")
    elif not finished:
        reached = run.metrics[-1].get("tokens", 0)
        notes.append(f"Training has not finished: {reached:,} of {stages[-1]:,} tokens. Run the same command to go on.")
    if run.base_scores is None:
        notes.append("The base model has not been scored yet, so there is no before.")
    waiting = [format_tokens(tokens) for tokens in stages if tokens not in done]
    if waiting:
        notes.append(f"Not scored yet: the end of {_listed(waiting)} tokens.")
    if run.recipe.general is None:
        notes.append("There is no general corpus in the recipe: what happened to general text was not measured.")
    if not run.recipe.evaluation.tasks:
        notes.append("No benchmark tasks were asked for: the findings rest on held-out text.")
    return tuple(notes)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def run_facts(run: RunFiles) -> FactList:
    """What was run: command, base, tokens, steps, time."""
    recipe, plan = run.recipe, run.plan
    base = f"{run.base.name}{f' at revision {run.base.revision}' if run.base.revision else ''}"
    seconds = sum(float(row.get("seconds") or 0) for row in run.metrics)
    facts = [
        ("command", run.environment.command or NOT_RECORDED),
        ("started", run.environment.started or NOT_RECORDED),
        ("base model", base),
        ("its licence", run.base.license or NOT_RECORDED),
        ("parameters", f"{plan.parameters:,}" if plan.parameters else NOT_RECORDED),
        ("seed", str(recipe.seed)),
        ("stages", f"{_listed([format_tokens(tokens) for tokens in recipe.training.stages])} tokens, cumulative"),
    ]
    if run.metrics:
        last = run.metrics[-1]
        tokens = int(last["tokens"])
        facts.append(("trained on", f"{tokens:,} tokens in {len(run.metrics):,} steps{_of_planned(plan.steps)}"))
        facts.append(("training time", format_seconds(seconds)))
        facts.append(("speed", f"{tokens / seconds:,.0f} tokens/s" if seconds else NOT_RECORDED))
        facts.append(("largest memory", size_text(max(int(row.get("memory_bytes") or 0) for row in run.metrics))))
    if plan.sequence_tokens and plan.step_tokens:
        facts.append(
            ("step", f"{plan.step_tokens:,} tokens: {plan.sequences_per_step} sequences of {plan.sequence_tokens:,}")
        )
    # Plans of older versions know of general text alone.
    replay = plan.replay or (f"{plan.replay_share} general text" if plan.replay_share else "none")
    facts.append(("replayed sequences", replay))
    facts.append(("other remedies", remedy_words(recipe.training.forgetting)))
    passes_over = {"domain": plan.domain_repetition, "general": plan.general_repetition}
    passes_over |= {name: text.get("repetition") for name, text in plan.other_texts.items()}
    for name, passes in passes_over.items():
        if passes:
            facts.append((f"passes over {name} text", f"{passes:.2f}"))
    return FactList("What was run", tuple(facts))


def _of_planned(steps: Sequence[int]) -> str:
    return f" of {steps[-1]:,} planned" if steps else ""


def training_notes(run: RunFiles, skipped: int) -> tuple[str, ...]:
    """Say what a curve does not show: resumptions and steps without a loss."""
    notes = []
    resumed = sum(event.get("event") == "resume" for event in run.events)
    if resumed:
        notes.append(f"Training was resumed {resumed} {'time' if resumed == 1 else 'times'} from a checkpoint.")
    if skipped:
        notes.append(f"{skipped} {'step' if skipped == 1 else 'steps'} had no finite loss and are not drawn.")
    return tuple(notes)


def checkpoint_table(run: RunFiles) -> Table | None:
    """List the complete checkpoints; None when there is none."""
    if not run.checkpoints:
        return None
    ends = {tokens: number for number, tokens in enumerate(run.plan.steps, start=1)}
    rows = []
    for checkpoint in run.checkpoints:
        what = "state to resume from"
        if checkpoint.releasable:
            stage = ends.get(checkpoint.step)
            what = f"end of stage {stage}" if stage else "released model"
            what += ": model/ is a plain Hugging Face folder, state/ resumes training"
        tokens = NOT_RECORDED if checkpoint.tokens is None else f"{checkpoint.tokens:,}"
        rows.append((checkpoint.path, tokens, f"{checkpoint.step:,}", size_text(checkpoint.bytes), what))
    headers = ("path in the run folder", "tokens", "step", "size", "what it is")
    return Table("", headers, (False, True, True, True, False), tuple(rows))


def environment_facts(run: RunFiles) -> FactList:
    """Versions and hardware."""
    e = run.environment
    memory = size_text(e.memory_bytes) if e.memory_bytes else NOT_RECORDED
    names = ("onward", "python", "torch", "transformers", "platform", "processor")
    facts = [(name, getattr(e, name) or NOT_RECORDED) for name in names]
    facts += [("cores", str(e.cores or NOT_RECORDED)), ("memory", memory), ("accelerator", e.accelerator or "none")]
    return FactList("Environment", tuple(facts))


def fingerprint_facts(run: RunFiles) -> FactList:
    """What identifies the inputs and outputs."""
    facts = [("base model", run.base.fingerprint or NOT_RECORDED)]
    facts += [(f"{corpus.role} corpus", corpus.fingerprint) for corpus in run.corpora]
    if run.base_scores is not None:
        facts.append(("base scores", run.base_scores.name))
    facts += [(checkpoint.path, checkpoint.fingerprint) for checkpoint in run.checkpoints]
    return FactList("Fingerprints", tuple(facts))


def size_text(size_bytes: int) -> str:
    """Write a size for people: `512 B`, `8.1 MB`, `3.2 GB` (powers of ten)."""
    for unit, suffix in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size_bytes >= unit:
            return (
                f"{size_bytes / unit:.3g} {suffix}"
                if size_bytes < 999.5 * unit
                else f"{size_bytes / unit:,.0f} {suffix}"
            )
    return f"{size_bytes} B"
