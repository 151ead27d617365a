"""Run what a study's members lack, one after the other; what fails is recorded and the others go on."""

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from onward.artifact import Folders, read_manifest, write_text
from onward.errors import UserError
from onward.pipeline import Run
from onward.pipeline.run_folder import RunFolder
from onward.progress import Progress
from onward.recipe import format_seconds, format_tokens
from onward.signals import Interrupted
from onward.studies.member import Member
from onward.studies.plan import StudyPlan
from onward.studies.states import drop_states
from onward.training.launch import USER_ERROR, RanksEnded
from onward.training.stages import Stage, points_of, stages_of

KINDS = ("corpora", "base scores", "Fisher information", "trained members", "scores")
_SHARED = {"corpora": "corpora", "base scores": "scores", "Fisher information": "fisher"}
"""Folder of the cache by the kind of artifact."""


@dataclass(frozen=True)
class Failure:
    """A member that was not made: what it says, and the file with the traceback. is_users: its owner can mend it."""

    member: str
    message: str
    traceback: Path
    is_users: bool


@dataclass
class Counts:
    """How many artifacts of a kind were made, and how often one that was there already was used.

    What another process made while it was waited for counts as made.
    """

    made: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    reused: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))

    def add(self, kind: str, made: int, reused: int) -> None:
        """Count one use of artifacts."""
        self.made[kind] = self.made.get(kind, 0) + made
        self.reused[kind] = self.reused.get(kind, 0) + reused

    def words(self) -> str:
        """Say all counts: `corpora 2 made, 22 reused; ...`; kinds that were not used are left out."""
        used = [kind for kind in self.made if self.made[kind] + self.reused[kind]]
        return "; ".join(f"{kind}: {self.made[kind]:,} made, {self.reused[kind]:,} reused" for kind in used)


class Execution:
    """Runs the members of a plan in this process.

    workers, processes: as of `pipeline.Run`. keep_states: leave the optimizer's states of members that are scored.
    """

    def __init__(
        self, plan: StudyPlan, progress: Progress, workers: int | None, processes: int, keep_states: bool
    ) -> None:
        self.plan, self.progress, self.workers, self.processes = plan, progress, workers, processes
        self.keep_states = keep_states
        self.folders = Folders(plan.cache, plan.runs)
        self.counts = Counts()
        self.failures: list[Failure] = []

    def all(self) -> None:
        """Make what is missing. A signal ends it (Interrupted, KeyboardInterrupt, SystemExit); nothing else does."""
        plan, is_told = self.plan, False
        if plan.study != "baseline":
            self.progress.note(_length_words(plan))
        for number, member in enumerate(plan.members, start=1):
            self.progress.note(f"member {number} of {len(plan.members)}: {member.name}")
            with self.recorded(member.name):
                seconds = self._make(member)
                if seconds is not None and not is_told:
                    is_told = True
                    self._foretell(seconds / _tokens(member), plan.members[number:])

    def _foretell(self, seconds_per_token: float, following: Sequence[Member]) -> None:
        """Say how long the members that are not scored yet will take, if they are as fast as one that was."""
        left = [
            member for member in following if not any((self.plan.runs / member.name).glob("scores/*/manifest.json"))
        ]
        if left:
            seconds = seconds_per_token * sum(map(_tokens, left))
            trainings = f"{len(left)} trainings" if len(left) > 1 else "training"
            self.progress.note(f"about {format_seconds(seconds)} for the other {trainings}, if they are as fast")

    @contextmanager
    def recorded(self, name: str, member: str | None = None) -> Iterator[None]:
        """Turn whatever a member raises into a Failure, with its traceback in a file; signals pass.

        member: whose results are read. When it has failed, what its owner can mend is told of once, with it.
        """
        path = self.plan.folder / "failed" / f"{name}.txt"
        try:
            yield
            path.unlink(missing_ok=True)
        except Interrupted:
            raise
        except Exception as error:
            if isinstance(error, RanksEnded) and error.status > 128:  # a signal that the ranks were told of
                raise
            if _is_users(error) and any(failure.member == member for failure in self.failures):
                path.unlink(missing_ok=True)
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, "".join(traceback.format_exception(error)))
            words = str(error) or type(error).__name__
            self.failures.append(Failure(name, words, path, _is_users(error)))
            self.progress.note(f"{name} failed: {words.splitlines()[0]} ({path})")

    def _make(self, member: Member) -> float | None:
        """Make the corpora, the base's scores, the training and its scores; for `baseline` the first two alone.

        Return the seconds that training and scoring took; None where a part of it was there already.
        """
        run = Run(
            member.recipe, folders=self.folders, progress=self.progress, workers=self.workers, processes=self.processes
        )
        with self._counted("corpora", run):
            _ = run.corpora
        with self._counted("base scores", run):
            run.score_base()
        if self.plan.study == "baseline":
            return None
        _ = run.plan
        places = places_of(run)
        there = sum(read_manifest(place.folder) is not None for place in places)
        is_new, began = not (run.folder / "checkpoints").exists(), perf_counter()
        with self._counted("Fisher information", run):
            run.train()
        self.counts.add("trained members", int(there < len(places)), int(there == len(places)))
        scored = sum(read_manifest(scores_of(run.folder, place)) is not None for place in places)
        for place in places:
            run.score_stage(place)
        self.counts.add("scores", len(places) - scored, scored)
        seconds = perf_counter() - began
        if not self.keep_states:
            drop_states(run.folder)
        return seconds if is_new else None

    @contextmanager
    def _counted(self, kind: str, run: Run) -> Iterator[None]:
        """Count the shared artifacts of a kind that the block makes, and those that the member found there."""
        place = self.folders.cache / _SHARED[kind]
        before = _complete(place)
        yield
        uses = _uses(kind, run)
        made = min(uses, len(_complete(place) - before))  # others may make some of their own in the same cache
        self.counts.add(kind, made, uses - made)


def _is_users(error: Exception) -> bool:
    """Whether the study's owner can mend an error; of ranks only their exit status tells it here."""
    return isinstance(error, UserError) or (isinstance(error, RanksEnded) and error.status == USER_ERROR)


def _uses(kind: str, run: Run) -> int:
    """How many artifacts of a kind a member needs."""
    if kind == "corpora":
        return len(run.corpora.paths())
    ewc = run.recipe.training.forgetting.ewc
    return 1 if kind == "base scores" else int(ewc is not None and ewc.strength > 0)


def _length_words(plan: StudyPlan) -> str:
    """Say at a study's start how many trainings there are, and how long each is."""
    number, each = len(plan.members), format_tokens(plan.tokens)
    if number == 1:
        return f"one training of {each} tokens"
    tokens = f"up to {each} tokens" if plan.separate else f"{each} tokens each"
    return f"{number} trainings of {tokens}, one after the other"


def _tokens(member: Member) -> int:
    return member.recipe.training.stages[-1]


def _complete(place: Path) -> set[Path]:
    return {path.parent for path in place.glob("*/manifest.json")}


def places_of(run: Run) -> tuple[Stage, ...]:
    """Return where a member's models are: its stages' ends and the points between, by their tokens."""
    training = run.recipe.training
    stages = stages_of(training, run.recipe.training_seed, run.folder)
    points = points_of(training, run.recipe.evaluation.at, run.recipe.training_seed, run.folder)
    return tuple(sorted((*stages, *points), key=lambda place: place.tokens))


def scores_of(run_folder: Path, place: Stage) -> Path:
    """Return where the scores of a model of a run stand."""
    return run_folder / "scores" / place.folder.name


def scores_name(member: Member) -> str:
    """Return under what name it is recorded that a member's scores cannot be read."""
    return f"scores-of-{member.name}"


def base_scores_of(run_folder: Path) -> Path:
    """Return where the scores of the base that belong to a member stand; raises UserError when that is not recorded."""
    recorded = RunFolder(run_folder, is_written=False).recorded.get("base_scores")
    if recorded is None:
        where = str(run_folder / "artifacts.json")
        raise UserError("a member does not say where its base's scores are", where, todo="run the study again")
    return Path(recorded)
