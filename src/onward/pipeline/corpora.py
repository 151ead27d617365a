"""The corpora of a run by name: how much of each is wanted, where it will stand, and its preparation."""

import gc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from onward.artifact import Folders, find, read_manifest
from onward.corpus.engine import processes
from onward.corpus.preparation import Items, Preparation, plan_preparation
from onward.corpus.prepare import PreparedCorpus, make
from onward.corpus.reading.sources import find_inputs
from onward.model.source import ModelSource
from onward.model.tokenizer import LoadedTokenizer
from onward.pipeline.run_folder import RunFolder
from onward.plan import check_domain, sampled_tokens, wanted_tokens
from onward.progress import Progress
from onward.recipe import SCORED, Corpus, Recipe, SelfReplay
from onward.recipe.sections import as_path

if TYPE_CHECKING:
    from onward.corpus.engine import StartWorkers
    from onward.corpus.examine import Examined, Task
    from onward.model.sampled import Sampled


@dataclass(frozen=True)
class Corpora:
    """The prepared texts of a run. others: by name, what is replayed beside general text."""

    domain: PreparedCorpus
    general: PreparedCorpus | None
    others: Mapping[str, PreparedCorpus] = field(default_factory=dict)

    def by_name(self) -> dict[str, PreparedCorpus]:
        """Return all of them, the domain first."""
        general = {} if self.general is None else {"general": self.general}
        return {"domain": self.domain, **general, **self.others}

    def paths(self) -> dict[str, Path]:
        """Return the artifact folder of each corpus by its name."""
        return {name: corpus.path for name, corpus in self.by_name().items()}

    def scored(self) -> dict[str, Path]:
        """Return the artifact folders of those whose held-out text is scored."""
        return {name: path for name, path in self.paths().items() if name in SCORED}


@dataclass(frozen=True)
class Preparing:
    """What the corpora of a recipe are prepared with.

    workers: processes that prepare text (None: one per core); start_workers: another engine for them.
    """

    recipe: Recipe
    base: ModelSource
    tokenizer: LoadedTokenizer
    folders: Folders
    kept: RunFolder
    progress: Progress
    workers: int | None
    start_workers: "StartWorkers[Task, tuple[Examined, ...]] | None"

    @property
    def beside_domain(self) -> dict[str, Corpus]:
        """The recipe's corpora by name, without the domain."""
        return {name: corpus for name, corpus in self.recipe.texts().items() if name != "domain"}

    def all(self, planned: Preparation) -> Corpora:
        """Prepare every corpus, the domain first; raises UserError when that is too short, before text is sampled.

        planned: the domain's preparation.
        """
        self._check_sources()
        domain = self.make(planned)
        if any(corpus.self_replay is not None for corpus in self.beside_domain.values()):
            check_domain(self.recipe, domain)
        return self.recorded(domain, self.beside(domain.path))

    def beside(self, domain: Path | None) -> dict[str, PreparedCorpus]:
        """Prepare the corpora beside the domain; domain: what their duplicates may be looked for in."""
        return {name: self.make(self.planned(name, domain)) for name in self.beside_domain}

    def recorded(self, domain: PreparedCorpus, beside: Mapping[str, PreparedCorpus]) -> Corpora:
        """Write into the run's folder where its corpora are, and how much of each was wanted."""
        others = {name: corpus for name, corpus in beside.items() if name not in SCORED}
        corpora = Corpora(domain, beside.get("general"), others)
        paths = {name: str(folder) for name, folder in corpora.paths().items()}
        self.kept.record(self.base, corpora=paths, prepared_for=self.wanted)
        return corpora

    def all_planned(self, domain: Preparation) -> dict[str, Preparation]:
        """Return every corpus as it will be prepared; one that is compared with the domain as far as that is there."""
        self._check_sources()
        there = domain.folder if read_manifest(domain.folder) is not None else None
        return {"domain": domain} | {name: self.planned(name, there) for name in self.beside_domain}

    def planned(self, name: str, domain: Path | None) -> Preparation:
        """Return a corpus as it will be prepared; domain: the prepared one, None to plan while it is not there."""
        corpus = self.recipe.texts()[name]
        if corpus.self_replay is not None:
            sized = corpus.self_replay.model_copy(update={"tokens": self.wanted[sampled(name)]})
            corpus = corpus.model_copy(update={"self_replay": sized})
        if is_compared_with_domain(corpus):
            assert corpus.duplicates is not None
            others = [path for path in corpus.duplicates.against if path != "domain"]
            against = (*([] if domain is None else [str(domain)]), *others)
            duplicates = corpus.duplicates.model_copy(update={"against": against})
            corpus = corpus.model_copy(update={"duplicates": duplicates})
        planned = plan_preparation(
            corpus,
            tokenizer=self.tokenizer,
            sequence_tokens=self.recipe.training.sequence_tokens,
            wanted_tokens=self.wanted[name],
            seed=self.recipe.seed,
            folders=self.folders,
            items=self._items(corpus),
            model_fingerprint=self.base.fingerprint,
            label=name,
        )
        recorded = self.kept.recorded.get("corpora", {}).get(name) if self.kept.has_results else None
        if recorded is not None:  # the corpus that the run began with; what changed since is named
            find(Path(recorded), planned.made_from)
        return planned

    def make(self, planned: Preparation) -> PreparedCorpus:
        """Prepare a planned corpus, or return at once when exactly this one is there."""
        return make(planned, self._generate, self.start_workers or processes(self.workers), self.progress)

    def _check_sources(self) -> None:
        """Find a mistyped source of the other texts before the domain is prepared; raises UserError."""
        for corpus in self.beside_domain.values():
            for source in (*corpus.sources, *corpus.held_out.sources):
                find_inputs(source)

    @cached_property
    def wanted(self) -> dict[str, int]:
        """How many tokens to keep of each corpus by its name and, by `sampled(name)`, to sample."""
        found = {}
        for name, corpus in self.recipe.texts().items():
            found[name] = wanted_tokens(name, corpus, self.recipe)
            samples = sampled_tokens(name, corpus, self.recipe)
            found |= {} if samples is None else {sampled(name): samples}
        if self.kept.has_results:  # a stage more repeats this text within its cap; more text would be another corpus
            found |= self.kept.recorded.get("prepared_for", {})
        return found

    def _items(self, corpus: Corpus) -> Items | None:
        """Return the benchmark items that a corpus must not hold: by default those that the recipe scores."""
        from onward.tasks.questions import item_facts, load_questions

        evaluation, named = self.recipe.evaluation, corpus.contamination and corpus.contamination.tasks
        tasks, limit = evaluation.tasks if named is None else named, evaluation.limit
        if not tasks:
            return None
        data = None if evaluation.data is None else as_path(evaluation.data)
        return Items(item_facts(tasks, data, limit), partial(load_questions, tasks, data, limit))

    def _generate(self, settings: SelfReplay, seed: int, first: int, made: int) -> Iterator["Sampled"]:
        import torch

        from onward.model.generate import sample_documents, sampling_dtype
        from onward.model.load import load_model

        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = load_model(self.base, sampling_dtype(device), device)
        try:
            yield from sample_documents(model, self.tokenizer, settings, seed, first, made)
        finally:
            del model
            if device == "cuda":  # training wants its room; parts of a model refer to each other
                gc.collect()
                torch.cuda.empty_cache()


def is_compared_with_domain(corpus: Corpus) -> bool:
    """Whether a corpus drops what the domain holds."""
    return corpus.duplicates is not None and "domain" in corpus.duplicates.against


def sampled(name: str) -> str:
    """Return under what name a run remembers how many tokens of a corpus it samples."""
    return "sampled" if name == "general" else f"{name}:sampled"
