"""How a task's name says how many examples stand before each question: `mmlu@5`."""

from onward.errors import UserError


def split_shots(task: str) -> tuple[str, int | None]:
    """Return lm-eval's name of a task and the examples asked for, None for lm-eval's own number.

    Raises UserError when what follows the last `@` is no number.
    """
    name, at, shots = task.rpartition("@")
    if not at:
        return task, None
    if not name or not shots.isdecimal():
        raise UserError(
            "examples before a question are counted", "evaluation.tasks", task, "a task and a number: mmlu@5"
        )
    return name, int(shots)
