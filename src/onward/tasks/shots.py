"""The names of tasks: how many examples stand before each question (`mmlu@5`), and telling of wrong ones."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

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


@contextmanager
def all_wrong_names(tasks: Iterable[str]) -> Iterator[None]:
    """Where one of these tasks turns out to be none, raise UserError for all that are.

    lm-eval's definitions are read only then: with prompts that are kept they are not needed.
    """
    try:
        yield
    except UserError:
        from onward.tasks.harness import require_tasks

        require_tasks(tasks)
        raise
