"""What a run is foreseen to need, as rich tables for a terminal of 80 columns or more."""

from collections.abc import Callable, Iterator, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from onward.plan.budget import passes_too_often
from onward.plan.costs import ALL_TRAINED, DISK_TOO_SMALL
from onward.plan.foresight import Foresight, Machine, MemoryForesight, Range, StrategyForesight, TextForesight
from onward.recipe import format_seconds
from onward.reporting.console import common_folder, percent, screened
from onward.reporting.drawing import token_text
from onward.reporting.figures import rate_text
from onward.training.fitting import amount

_LEVELS = " ▁▂▃▄▅▆▇█"
_CURVE_WIDTH, _CURVE_HEIGHT = 64, 6
_SHOWN_SOURCES, _SHOWN_STRATEGIES = 12, 6
_DAY_SECONDS = 86_400.0
_WRONG, _DOUBTFUL = "bold red", "yellow"


def plan_view(foresight: Foresight) -> Iterator[RenderableType]:
    """Yield the parts of a plan in reading order, each to be set apart by an empty line.

    What speaks against the run is marked where it stands; the problems themselves are for the caller to print last. A
    run that cannot work needs no learning rate, which is left out.
    """
    yield _facts_view(foresight)
    yield _texts_view(foresight.texts, foresight.maximum_repetition)
    if any(len(text.sources) > 1 for text in foresight.texts):
        yield _sources_view(foresight.texts)
    yield _stages_view(foresight)
    if not foresight.problems:
        yield curve_view(foresight)
    if foresight.memory is not None:
        yield _memory_view(foresight.memory, foresight.machine)
    yield _costs_view(foresight)
    if foresight.notes:
        yield Group(*(_note(note) for note in foresight.notes))


def duration(seconds: float) -> str:
    """Write a time as people plan with it: `under 1 min`, `3 h 20 min`, `9 days`."""
    if seconds < 60:
        return "under 1 min"
    return format_seconds(seconds) if seconds < 3 * _DAY_SECONDS else f"{seconds / _DAY_SECONDS:,.0f} days"


def span(value: Range, form: Callable[[float], str]) -> str:
    """Write a range, or one number where both ends read the same: `2 h 10 min to 4 h 05 min`."""
    low, high = form(value.low), form(value.high)
    return low if low == high else f"{low} to {high}"


def curve_view(foresight: Foresight, width: int = _CURVE_WIDTH, height: int = _CURVE_HEIGHT) -> RenderableType:
    """Draw the learning rate over the run with block characters, the ends of the stages marked below."""
    total, peak = foresight.steps[-1], max(rate for _, rate in foresight.curve)
    levels = [round(rate / peak * height * 8) for rate in _columns(foresight.curve, total, width)]
    label = rate_text(peak)
    lines = [Text("learning rate", style="bold")]
    for row in reversed(range(height)):
        bars = "".join(_LEVELS[min(8, max(0, level - 8 * row))] for level in levels)
        margin = label if row == height - 1 else "0" if row == 0 else ""
        lines.append(Text.assemble((f" {margin:>{len(label)}} ", "dim"), (bars, "cyan")))
    places = [max(0, round(steps / total * width) - 1) for steps in foresight.steps]
    axis = "".join("┴" if column in places else "─" for column in range(width))
    names = [" "] * (width + 1)
    for place, tokens in reversed(list(zip(places, foresight.stages, strict=True))):
        name = token_text(tokens)
        begin = max(0, place - len(name) + 1)
        if all(sign == " " for sign in names[max(0, begin - 1) : begin + len(name) + 1]):
            names[begin : begin + len(name)] = name
    indent = " " * (len(label) + 2)
    lines += [Text(indent + axis, style="dim"), Text(f"{indent}{''.join(names).rstrip()} tokens", style="dim")]
    return Group(*lines)


def _columns(curve: Sequence[tuple[int, float]], total: int, width: int) -> list[float]:
    """Return the mean rate in each column; a column without a point has that of the last point before it."""
    sums, counts = [0.0] * width, [0] * width
    for step, rate in curve:
        column = min(width - 1, step * width // total)
        sums[column] += rate
        counts[column] += 1
    values: list[float] = []
    for column in range(width):
        values.append(sums[column] / counts[column] if counts[column] else values[-1])
    return values


def _facts_view(foresight: Foresight) -> RenderableType:
    machine = foresight.machine
    several, each = (f"{machine.count} x ", " each") if machine.count > 1 else ("", "")
    where = "" if machine.here else ", which is not here"
    rate = f"{machine.peak_flops / 1e12:.3g} TFLOP/s in {machine.precision} ({machine.peak_from})"
    room = "" if machine.memory_bytes is None else f", {amount(machine.memory_bytes)}"
    room += each if machine.kind == "cuda" else ""  # processes share the memory
    rows = [
        ("model", f"{foresight.model}, {foresight.parameters:,} parameters"),
        ("machine", f"{several}{machine.name}{where}: {rate}{room}"),
        ("steps", f"{foresight.steps[-1]:,} of {foresight.sequences_per_step:,} sequences of "
                  f"{foresight.sequence_tokens:,} tokens ({token_text(foresight.step_tokens)})"),
        ("replay", foresight.replay),
    ]  # fmt: skip
    title = Text.assemble((f"plan: {screened(foresight.name)}", "bold"))
    number = len(foresight.problems)
    if number:
        title.append(f", which cannot work: {number} problem{'s' if number > 1 else ''}, at the end", _WRONG)
    return Group(title, _grid(rows))


def _texts_view(texts: Sequence[TextForesight], cap: float) -> RenderableType:
    table = _table("text", ("", "documents", "kept", "tokens", "needed", "passes"))
    for text in texts:
        table.add_row(
            Text.assemble(text.role, (f"\n{text.basis}", "dim")),
            _amount(text.documents, _count),
            Text(percent(text.kept_share, 1), _WRONG if not text.kept_share else ""),
            _amount(text.tokens),
            _needed(text),
            _passes(text, cap),
        )
    dropped = [_note(f"{text.role}: {'; '.join(text.losses)}") for text in texts if text.losses]
    return Group(table, *dropped)


def _needed(text: TextForesight) -> str:
    """Write how many of its tokens training reads, each as often as it does."""
    return token_text(text.passes.value * text.tokens.value) if text.sequences.low else token_text(text.tokens_needed)


def _passes(text: TextForesight, cap: float) -> Text:
    """Write how often a text is read, with the cap below where that is, or may be, too often."""
    shown = span(text.passes, lambda passes: f"{passes:.2f}") if text.sequences.low else "?"
    if passes_too_often(text.sequences_needed, text.sequences, cap):
        return Text(f"{shown}\nat most {cap:g}", _WRONG)
    if text.passes.high > cap:
        return Text.assemble(shown, (f"\nat most {cap:g}", _DOUBTFUL))
    return Text(shown)


def _sources_view(texts: Sequence[TextForesight]) -> RenderableType:
    rows = [(text, source) for text in texts for source in text.sources]
    folder = common_folder([source.path for _, source in rows])
    table = _table(f"sources{f', in {folder}' if folder else ''}", ("", "files", "tokens", "read"))
    for _, source in rows[:_SHOWN_SOURCES]:
        name = _plain(source.path.removeprefix(folder))
        table.add_row(name, f"{source.files:,}", _amount(source.tokens), _amount(source.read_tokens))
    more = len(rows) - _SHOWN_SOURCES
    return Group(table, *([_note(f"and {more} more")] if more > 0 else []))


def _stages_view(foresight: Foresight) -> RenderableType:
    table = _table("stages", ("", "tokens", "steps", "per parameter", "done after"))
    for number, (tokens, steps) in enumerate(zip(foresight.stages, foresight.steps, strict=True)):
        seconds = None if foresight.training is None else foresight.training.stage_seconds[number]
        after = "" if seconds is None else span(seconds, duration)
        ratio = f"{tokens / foresight.parameters:.3g}"
        table.add_row(f"stage {number + 1}", token_text(tokens), f"{steps:,}", ratio, after)
    return table


def _memory_view(memory: MemoryForesight, machine: Machine) -> RenderableType:
    title = Text.assemble((f"memory: {_room(memory, machine)}", "bold"))
    if memory.chosen is None:
        title.append(", too little", _WRONG)
    table = _table(None, ("", "rows", "chunk", "peak", "fits", "time", ""))  # a table's title is as narrow as the table
    shown = list(memory.strategies[:_SHOWN_STRATEGIES])
    if memory.chosen is not None and memory.chosen >= _SHOWN_STRATEGIES:
        shown.append(memory.strategies[memory.chosen])
    for option in shown:
        strategy = option.strategy
        chosen = memory.chosen is not None and option == memory.strategies[memory.chosen]
        table.add_row(
            _plain(_named(option)),
            f"{strategy.micro_batch:,}",
            f"{strategy.loss_chunk:,}",
            # Rounded away from the limit, so that what does not fit never reads like what there is.
            Text(amount(option.peak_bytes, "down" if option.fits else "up"), _WRONG if memory.chosen is None else ""),
            "yes" if option.fits else "no",
            f"{option.relative_time:.2f}",
            "taken" if chosen else "",
            style="bold" if chosen else None,
        )
    taken = memory.strategies[memory.chosen or 0]
    largest = sorted(taken.parts.items(), key=lambda part: -part[1])
    parts = ", ".join(f"{name} {amount(size)}" for name, size in largest if size >= 0.01 * taken.peak_bytes)
    return Group(title, table, _note(f"rows: sequences per forward pass; of the peak: {parts}"))


def _room(memory: MemoryForesight, machine: Machine) -> str:
    """Say what one device or process may use, and of what: `77.7 GB usable of 84.9 GB on each GPU`."""
    usable = f"{amount(memory.budget_bytes, 'down')} usable"
    of = "" if machine.memory_bytes is None else f" of {amount(machine.memory_bytes)}"
    if machine.count == 1:
        return f"{usable}{of}"
    return f"{usable}{of} on each GPU" if machine.kind == "cuda" else f"{usable} for each of {machine.count} processes"


def _named(option: StrategyForesight) -> str:
    """Name what a strategy does to fit: `zero3, offload, every 2nd block recomputed`."""
    strategy, words = option.strategy, []
    if strategy.sharding != "none":
        words.append(str(strategy.sharding))
    if strategy.offload:
        words.append("offload")
    if strategy.checkpoint_every == 1:
        words.append("recompute")
    elif strategy.checkpoint_every:
        words.append(f"recompute 1 in {strategy.checkpoint_every}")
    if strategy.compiled:
        words.append("compiled")
    return ", ".join(words) or "plain"


def _costs_view(foresight: Foresight) -> RenderableType:
    training, evaluation, disk = foresight.training, foresight.evaluation, foresight.disk
    rows: list[tuple[str, str | Text]] = []
    prepare = [text.prepare_seconds for text in foresight.texts if text.prepare_seconds is not None]
    if prepare:
        total = Range.exactly(0.0)
        for seconds in prepare:
            total = total.plus(seconds)
        rows.append(("prepare", span(total, duration)))
    remedies = foresight.remedies
    if remedies.sampling_seconds is not None and remedies.sampled_tokens > 1:  # of what nobody reads, one is wanted
        drawn = f"{token_text(remedies.sampled_tokens)} tokens from the base model"
        rows.append(("sample", f"{span(remedies.sampling_seconds, duration)}, estimated: {drawn}"))
    if remedies.fisher_seconds is not None:
        read = f"the Fisher information of {token_text(remedies.fisher_tokens)} tokens of {remedies.fisher_text}, once"
        rows.append(("EWC", f"{span(remedies.fisher_seconds, duration)}, estimated: {read}"))
    if training is not None:
        rate = span(training.tokens_per_second, lambda value: f"{_rounded(value):,}")
        share = span(training.utilisation, lambda value: f"{100 * value:.0f}")
        rows.append(("train", f"{span(training.seconds, duration)}, {training.basis}"))
        rows.append(("", f"{rate} tokens/s, {share} % of the peak"))
    if remedies.step_work != ALL_TRAINED:
        work = span(remedies.step_work, lambda value: f"{value:.2f}")
        rows.append(("", f"remedies: a step is {work} times the work of one without, in these hours"))
    if foresight.timed is not None:
        rows.append(("", f"peak memory measured: {amount(foresight.timed.peak_bytes)}"))
    scored = (
        f"{evaluation.models} models, each {evaluation.requests:,} requests, {token_text(evaluation.tokens)} tokens"
    )
    rows.append(("score", f"{span(evaluation.seconds, duration)}: {scored}"))
    if evaluation.between:
        rows.append(("", f"{evaluation.between} of the models between the stages' ends (evaluation.at)"))
    if evaluation.cloze_items:
        about = "at most some " if evaluation.cloze_items < evaluation.cloze_wanted else ""
        items = f"{about}{evaluation.cloze_items:,} questions of the domain's text"
        rows.append(("", f"{items} among these (evaluation.cloze)"))
    parts = {"corpora": disk.corpora, "Fisher information": disk.fisher}
    parts |= {"checkpoints": disk.checkpoints, "models": disk.models, "scores": disk.scores}
    written = ", ".join(f"{name} {amount(size)}" for name, size in parts.items() if size >= 1e3)
    rows.append(("disk", f"{amount(disk.total)}: {written}"))
    if foresight.machine.here:
        free = ", ".join(sorted({amount(size, "down") for size in disk.free.values()}))
        is_short = any(problem.what == DISK_TOO_SMALL for problem in foresight.problems)
        rows.append(("free", Text(f"{free}, too little", _WRONG) if is_short else free))
    return Group(Text("costs", style="bold"), _grid(rows))


def _rounded(value: float) -> int:
    """Round to two digits: more would be false."""
    return int(float(f"{value:.2g}"))


def _count(value: float) -> str:
    return f"{value:,.0f}" if value < 99_999 else token_text(value)


def _amount(value: Range, form: Callable[[float], str] = token_text) -> Text:
    """Write a number, an estimated one with its range below."""
    if value.is_exact:
        return Text(form(value.value))
    return Text.assemble(f"~{form(value.value)}", (f"\n{span(value, form)}", "dim"))


def _table(title: str | None, headers: Sequence[str]) -> Table:
    table = Table(title=title and screened(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for place, header in enumerate(headers):
        to_left = place == 0 or (not header and place == len(headers) - 1)
        table.add_column(header, justify="left" if to_left else "right", no_wrap=place > 0, overflow="fold")
    return table


def _grid(rows: Sequence[tuple[str, str | Text]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    for name, value in rows:
        grid.add_row(Text(f" {name}", style="dim"), _plain(value) if isinstance(value, str) else value)
    return grid


def _plain(text: str) -> Text:
    return Text(screened(text), overflow="fold")


def _note(text: str) -> RenderableType:
    return Padding(Text(screened(text)), (0, 0, 0, 1))
