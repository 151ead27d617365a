"""Every knob of a run, as typed sections. A function receives its own section, never the whole recipe."""

import codecs
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from onward.recipe.proxies import find_proxy
from onward.recipe.quality import PAPER, Quality, from_presets
from onward.recipe.quantities import Share, Tokens
from onward.recipe.section import Section

TASKS = ("mmlu", "arc_easy", "arc_challenge", "hellaswag", "winogrande", "boolq", "piqa")
"""The seven benchmarks of arXiv 2504.09687, by their lm-evaluation-harness names."""


class Model(Section):
    """The base model that is carried onward."""

    base: str
    """`onward/tiny` (in the package), a local folder, or a Hugging Face Hub id."""
    revision: str | None = None
    """Hub commit, tag or branch; null takes the newest and records its commit."""


class Source(Section):
    """One place that documents come from."""

    path: str
    """File, folder or glob (.jsonl .json .txt .md, also .gz .zst; .parquet .html .pdf .docx .epub), hf://datasets/...,
    s3://..., https://..., builtin:NAME, or proxy:NAME (docs/forgetting.md)."""
    text: str = "text"
    """Field that holds the document (JSONL, Parquet)."""
    license: Annotated[str | None, Field(validate_default=True)] = None
    """Licence of the text, for people; a proxy's is known."""
    group: str | None = None
    """Field whose value keeps documents on the same side of the held-out split (a book, a site); null: the text."""
    encoding: str | None = None
    """Encoding of the files (cp1252, utf-16); null: UTF-8, else what a byte order mark or the content says."""

    @field_validator("path")
    @classmethod
    def _known_proxy(cls, path: str) -> str:
        find_proxy(path)
        return path

    @field_validator("license")
    @classmethod
    def _of_proxy(cls, license_: str | None, info: ValidationInfo) -> str | None:
        proxy = find_proxy(info.data.get("path", ""))
        return proxy.license if proxy is not None and license_ is None else license_

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, encoding: str | None) -> str | None:
        if encoding is not None:
            try:
                codecs.lookup(encoding)
            except LookupError:
                raise ValueError(f"there is no encoding {encoding}; usual ones are utf-8, cp1252, utf-16") from None
        return encoding


class NearDuplicates(Section):
    """MinHash and locality-sensitive hashing over word n-grams (Broder 1997; Lee et al., arXiv 2107.06499)."""

    ngram_words: int = Field(5, ge=1)
    """Words in a shingle (FineWeb: 5)."""
    bands: int = Field(14, ge=1, le=64)
    """Bands of the signature (FineWeb: 14); two documents of Jaccard similarity s meet with 1 - (1 - s^rows)^bands."""
    rows: int = Field(8, ge=1, le=64)
    """Hashes in a band (FineWeb: 8)."""


class Duplicates(Section):
    """Which repeated documents are dropped; of those alike the first one read is kept."""

    exact: bool = True
    """Drop a document whose normalised text (NFC, lower case, single spaces) was read before. To keep equal texts,
    switch `near` off as well: they are near, too."""
    near: NearDuplicates | None = NearDuplicates()  # type: ignore[call-arg]
    """Drop a document much like one that is kept or held out; null: off."""
    covered: Share | None = None
    """Drop a document when this share of its passages (runs of 8 words) was read before, in one or many (50%);
    null: off, since it drops most documents that are filled into a template."""
    against: tuple[str, ...] = ()
    """Prepared corpora (folders) whose documents count as read before, for exact and near duplicates; `domain` (in
    the other corpora): this run's domain."""


class Contamination(Section):
    """What is done about benchmark items that stand in the text."""

    tasks: tuple[str, ...] | None = None
    """The tasks whose items are looked for; null: those that the recipe scores (`evaluation.tasks`)."""
    ngram_words: int = Field(13, ge=5)
    """An item is found by any of its n-grams of so many words (GPT-3: 13); shorter items by rules of their own."""
    minimum_overlap: Share = Fraction(0)
    """Leave alone what holds a smaller share of an item's n-grams; 0: a single one is enough."""
    action: Literal["drop", "cut", "report"] = "drop"
    """drop the document, cut the passage out of it, or only report; items found are listed in any case."""


class HeldOut(Section):
    """Text that is scored and never trained on."""

    share: Share = Fraction(1, 100)
    """Share of the documents (or groups) held out, chosen by a hash, so the choice is stable as the corpus grows."""
    sources: tuple[Source, ...] = ()
    """Take the held-out text from here instead of splitting it off; `share` is then not used."""

    @field_validator("share")
    @classmethod
    def _leaves_training_text(cls, share: Fraction) -> Fraction:
        if share >= 1:
            raise ValueError("a share of 100% would leave nothing to train on")
        return share


class SelfReplay(Section):
    """General text sampled from the base model itself, for bases whose training text is not public."""

    tokens: Tokens | None = None
    """How many tokens to sample; null: what the stages replay, divided by the allowed repetition."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature; 1.0 samples the model's own distribution."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling mass; 1.0 keeps every token."""
    document_tokens: int = Field(512, ge=16)
    """Longest sampled document in tokens."""
    median_tokens: int | None = Field(None, ge=1)
    """Median length of the documents: each is cut at a length drawn for it, and the model ends none before; null: the
    model ends its documents itself, or they are cut at `document_tokens`."""
    length_spread: float = Field(2.0, ge=1)
    """Geometric standard deviation of the drawn (log-normal) lengths: two thirds lie between the median divided by it
    and the median times it. Used with `median_tokens` alone."""

    @model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        if self.median_tokens is not None and self.median_tokens > self.document_tokens:
            longest = f"document_tokens, the longest ({self.document_tokens:,})"
            raise ValueError(f"median_tokens ({self.median_tokens:,}) is above {longest}")
        return self


class Corpus(Section):
    """Documents and what is done to them before training."""

    sources: tuple[Source, ...] = ()
    """Where the documents come from, read in this order."""
    self_replay: SelfReplay | None = None
    """Sample documents from the base model (for text to replay, not for the domain)."""
    unicode: Literal["nfc", "repair"] | None = "nfc"
    """nfc: compose characters; repair: also mend text that was decoded wrongly (ftfy); null: as read."""
    quality: Quality | None = PAPER
    """Quality rules, or presets: paper, gopher, c4, fineweb, or several in a list; null or `none`: no rule."""
    duplicates: Duplicates | None = Duplicates()
    """Repeated documents; null keeps them all."""
    contamination: Contamination | None = Contamination()  # type: ignore[call-arg]
    """Benchmark items in the text; null: not looked for. Without tasks there is nothing to look for."""
    held_out: HeldOut = HeldOut()
    """The held-out split."""
    packing: Literal["best_fit", "sequential", "none"] = "best_fit"
    """best_fit: best-fit-decreasing, cuts only documents longer than a sequence; sequential: one after the other,
    cut where a sequence ends (the paper); none: a sequence holds one document or a piece of it."""
    block_tokens: Tokens = 16_000_000
    """Kept tokens after which a block is packed and finished: what a kill cannot undo, and what streaming waits for."""
    tokens: Tokens | None = None
    """Stop reading after this many kept tokens; null: as many as the stages need, and enough for the held-out sample
    (evaluation.held_out_tokens / held_out.share: 100M for 1M at 1%).
    Set it where stages may be added later: more text would be another corpus, with other batches."""
    maximum_unreadable: Share = Fraction(1, 100)
    """More unreadable records than this share of those read is an error; fewer are counted in the ledger."""
    maximum_unknown_tokens: Share = Fraction(1, 10)
    """Drop a document when more than this share of its tokens is the unknown token."""
    minimum_bytes_per_token: float | None = Field(1.5, gt=0)
    """Drop a document that the tokenizer spells out almost byte by byte (binary or foreign-script text); null: off."""

    @field_validator("quality", mode="before")
    @classmethod
    def _preset(cls, value: object) -> object:
        """`quality: paper`, `quality: [gopher, fineweb]`: names of presets stand for their rules."""
        return from_presets(value)

    @model_validator(mode="after")
    def _has_documents(self) -> Self:
        if not self.sources and self.self_replay is None:
            raise ValueError("no documents: `sources` is empty")
        return self


class Evaluation(Section):
    """What is scored before and after."""

    tasks: tuple[str, ...] = TASKS
    """lm-evaluation-harness task names, `mmlu@5` with five examples before each question; empty: held-out text only."""
    data: str | None = None
    """Folder with the benchmarks' original files (offline); null: the Hub."""
    limit: int | None = Field(None, ge=1)
    """Score so many items of each task: its first ones, for MMLU spread evenly over the subjects; null: all."""
    held_out_tokens: Tokens | None = 1_000_000
    """Score about so many held-out tokens per corpus, in the order of the split's hash; null: all."""
    resamples: int = Field(2000, ge=100)
    """Bootstrap resamples behind every interval."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """What the model computes in; auto: bf16 on a GPU for weights stored so (lm-eval's own default), fp32 elsewhere."""
    at: tuple[Tokens, ...] = ()
    """Token counts of training ([50M, 100M]) at which the model is written and scored too, beside the stages' ends."""
    cloze: int | None = Field(None, ge=1)
    """Make so many multiple-choice questions from the domain's held-out text, and score them (`cloze:domain`); null:
    none."""

    @field_validator("limit", "resamples", "cloze", mode="before")
    @classmethod
    def _counted(cls, value: object) -> object:
        """`cloze: yes` would be one question: YAML's yes is the number 1 to Python."""
        if isinstance(value, bool):
            raise ValueError("expected a number, not yes or no (null switches it off, where it can be)")
        return value

    @field_validator("tasks", mode="before")
    @classmethod
    def _paper_tasks(cls, value: object) -> object:
        """`tasks: paper` is short for the seven benchmarks."""
        return TASKS if value == "paper" else value


def as_path(text: str) -> Path:
    """Turn a path of a recipe into a path of this machine: `~` expanded, relative to the working directory."""
    return Path(text).expanduser()
