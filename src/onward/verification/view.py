"""A verification as a person reads it: the lives, the steps side by side, the verdict."""

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from onward.verification.outcome import Life, Verification

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType


def verification_view(found: Verification) -> "Iterator[RenderableType]":
    """Yield what is printed; 80 columns are enough."""
    yield _lives(found)
    yield _steps(found)
    yield Text("\n".join(_words(found)), overflow="fold")


def _lives(found: Verification) -> Table:
    title = (
        f"{found.recipe}: {found.steps} steps on {found.device} in {found.precision}, interrupted {found.kills} times"
    )
    table = Table(title=title, title_justify="left")
    for column in ("start", "ranks", "micro-batch", "from", "to step", "lost"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("ended")
    lost = (*found.lost_steps, 0)
    for number, (life, steps) in enumerate(zip(found.lives, lost, strict=True), start=1):
        micro_batch = "recipe's" if life.micro_batch is None else str(life.micro_batch)
        row = (str(number), str(life.ranks), micro_batch, str(life.first_step), str(life.last_step), str(steps))
        table.add_row(*row, _ending(life))
    return table


def _ending(life: Life) -> str:
    if life.killed is None:
        return "came to the end"
    who = "one rank killed" if life.killed == "one rank" else "killed"
    return f"{who} while saving" if life.while_saving else who


def _steps(found: Verification) -> Table:
    table = Table(title="step by step", title_justify="left")
    for column in ("step", "start", "batch", "labelled", "uninterrupted", "interrupted", "difference"):
        table.add_column(column, justify="right", no_wrap=True)
    for pair in found.pairs:
        same = pair.same_batch and pair.labelled_tokens[0] == pair.labelled_tokens[1]
        first, second = pair.losses_nats
        apart = pair.loss_difference_nats
        table.add_row(
            str(pair.step),
            str(pair.life + 1),
            "same" if same else "OTHER",
            f"{pair.labelled_tokens[1]:,}",
            f"{first:.6f}",
            f"{second:.6f}",
            "0" if apart == 0 else f"{apart:.1e}",
        )
    return table


def _words(found: Verification) -> list[str]:
    weights = found.weights
    lines = []
    if found.kills:
        lost = f"{max(found.lost_steps)} steps lost at most by a kill, {found.interval_steps} between checkpoints"
        lines.append(f"{lost}; {found.kills_while_saving} of {found.kills} kills came while saving")
        if max(found.lost_steps) > found.interval_steps:
            lines.append("(more than that: the last checkpoint was still being written in the background)")
    if found.same_bits:
        lines.append("losses, weights and the optimizer's moments are equal to the bit")
    else:
        lines.append(f"losses at most {found.loss_difference_nats:.1e} nats apart")
        lines.append(f"final weights at most {weights.largest:.1e} apart, {weights.relative:.1e} of their length")
    wanted = f"{found.tolerance_nats:.0e} nats" if found.tolerance_nats else "equal bits"
    batches = "the same batches" if found.same_batches else "NOT the same batches"
    verdict = "interrupted = uninterrupted" if found.agrees else "interrupted is NOT uninterrupted"
    return [*lines, f"{verdict}: {batches}; asked for: {wanted}; {found.seconds:.0f} s"]
