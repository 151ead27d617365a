"""What a user can mend: one exception with the five answers a person needs."""

from dataclasses import dataclass


@dataclass
class UserError(Exception):
    """Something outside the program is wrong and its owner can mend it (exit code 2, no traceback).

    what: one sentence. where: file and line, or recipe key. got and expected: values as the user would write them.
    todo: the next thing to do.
    """

    what: str
    where: str | None = None
    got: str | None = None
    expected: str | None = None
    todo: str | None = None

    def __post_init__(self) -> None:
        super().__init__(self.what)

    def __str__(self) -> str:
        rows = [("where", self.where), ("got", self.got), ("expected", self.expected), ("do", self.todo)]
        return "\n".join([self.what, *(f"  {name:<9} {value}" for name, value in rows if value is not None)])

    def __reduce__(self) -> tuple[type["UserError"], tuple[str | None, ...]]:
        # Exceptions cross process borders by pickling; the default would rebuild from `what` alone.
        return type(self), (self.what, self.where, self.got, self.expected, self.todo)


class RankError(UserError):
    """A problem that one of several ranks has met alone: it tells of it itself, since the others do not know."""


class UserErrors(UserError):
    """Several independent problems, reported at once (contract 10)."""

    def __init__(self, title: str, problems: list[UserError]) -> None:
        self.problems = problems
        super().__init__(what=title)

    def __str__(self) -> str:
        return "\n".join([self.what, *(f"- {problem}".replace("\n", "\n  ") for problem in self.problems)])

    def __reduce__(self) -> tuple[type["UserErrors"], tuple[str, list[UserError]]]:  # type: ignore[override]
        return type(self), (self.what, self.problems)


def in_a_line(message: str) -> str:
    """Return what an error says in one line: `the file is not there (where a.jsonl; do check the path)`."""
    first, *rows = (" ".join(row.split()) for row in message.splitlines() or [""])
    return f"{first} ({'; '.join(rows)})" if rows else first


def nearest(name: str, known: list[str]) -> str | None:
    """Return the known name closest to a misspelt one, or None when nothing is close (difflib ratio 0.6)."""
    from difflib import get_close_matches

    return next(iter(get_close_matches(name, known, n=1, cutoff=0.6)), None)
