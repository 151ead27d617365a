"""The learning rate of a run as a picture."""

from pathlib import Path

from onward.artifact import write_text
from onward.plan.foresight import Foresight
from onward.reporting.drawing import Scale, line, path, standalone, svg, text, ticks, token_text
from onward.reporting.figures import WIDE, rate_text

FILE = "learning-rate.svg"
_LEFT, _TOP, _BOTTOM, _MARGIN = 46, 40, 210, 40


def write_figure(foresight: Foresight, run_folder: Path) -> Path:
    """Write the curve into the run's folder and return where."""
    run_folder.mkdir(parents=True, exist_ok=True)
    write_text(run_folder / FILE, standalone(rate_picture(foresight), WIDE))
    return run_folder / FILE


def rate_picture(foresight: Foresight) -> str:
    """Draw the learning rate over the tokens of the whole run, the stages marked where each ends."""
    right, total = WIDE - _MARGIN, foresight.steps[-1] * foresight.step_tokens
    peak = max(rate for _, rate in foresight.curve)
    x, y = Scale(0, total, _LEFT, right), Scale(0, peak * 1.08, _BOTTOM, _TOP)
    points = [(x(step * foresight.step_tokens), y(rate)) for step, rate in foresight.curve]
    points.append((x(total), points[-1][1]))
    caption = f"Learning rate of {foresight.name} over {token_text(total)} tokens, {len(foresight.stages)} stages."
    parts = [line(_LEFT, y(peak), right, y(peak), "grid"), line(_LEFT, _BOTTOM, right, _BOTTOM, "axis")]
    parts.append(path([(points[0][0], _BOTTOM), *points, (points[-1][0], _BOTTOM)], "area"))
    parts.append(path(points, "rate"))
    parts.append(text(_LEFT - 8, y(peak) + 4, rate_text(peak), "tick", "end"))
    parts.append(text(_LEFT - 8, _BOTTOM + 4, "0", "tick", "end"))
    free = right + 100.0  # a label without room is left out, its line is not
    for number, steps in reversed(list(enumerate(foresight.steps, start=1))):
        place = x(steps * foresight.step_tokens)
        parts.append(line(place, _TOP - 6, place, _BOTTOM, "stage"))
        if place <= free - 100:
            label = f"stage {number} · {token_text(foresight.stages[number - 1])}"
            parts.append(text(place, _TOP - 12, label, "note", "end"))
            free = place
    parts += [text(x(value), _BOTTOM + 18, token_text(value), "tick", "middle") for value in ticks(0, total, 6)]
    parts.append(text(right, _BOTTOM + 36, "tokens trained on", "label", "end"))
    return svg(WIDE, _BOTTOM + 44, caption, "wide", parts)
