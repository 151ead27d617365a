"""The benchmarks' original files in a folder of the user's: where they are looked for, and how many items they hold.

Files are looked for under the names below, each plain or with .gz or .zst at its end; the first found is read.

| benchmark  | files, relative to `evaluation.data`                              | format                         |
|------------|-------------------------------------------------------------------|--------------------------------|
| MMLU       | {mmlu/,data/,}test/SUBJECT_test.csv, and dev/SUBJECT_dev.csv      | CSV, 6 columns, no header      |
| ARC        | {arc/,ARC-Easy/,ARC-V1-Feb2018-2/ARC-Easy/,}ARC-Easy-Test.jsonl;  | question.stem, choices, key    |
|            | for examples (`arc_easy@5`) ARC-Easy-Train.jsonl there            |                                |
| HellaSwag  | {hellaswag/,}hellaswag_val.jsonl                                  | ctx (or ctx_a, ctx_b), endings |
| WinoGrande | {winogrande/,winogrande_1.1/}dev.jsonl                            | sentence, option1, option2     |
| BoolQ      | {boolq/dev,BoolQ/val}.jsonl                                       | question, passage, answer      |
| PIQA       | piqa/valid.jsonl with valid-labels.lst, or the original archive's | goal, sol1, sol2; 0/1 per line |
|            | physicaliqa-train-dev/dev.jsonl with dev-labels.lst               |                                |
| OpenBookQA | {openbookqa/,Main/,OpenBookQA-V1-Sep2018/Data/Main/}test.tsv, or  | TSV with header; as ARC        |
|            | test.jsonl there; for examples train.tsv or train.jsonl           |                                |
| LAMBADA    | {lambada/lambada_openai,lambada/test,lambada_test_en}.jsonl       | text, or context, continuation |
| COPA       | {copa/copa_val,COPA/val}.jsonl                                    | SuperGLUE's, or query, choices |
| WikiText-2 | {wikitext/,wikitext-2-raw/,wikitext-2/,}wiki.test.{raw,tokens},   | text, titles as ` = Title = `  |
|            | wikitext2_test.txt; without them wiki.valid..., ..._valid.txt,    |                                |
|            | which is said, since published numbers are of the test text       |                                |

A file whose number of items is not the published one is refused, unless a file named `SUBSET` lies beside it or in a
folder above it, up to `evaluation.data`. Examples (MMLU's dev, ARC's and OpenBookQA's train) must be as many as were
published in any case. They are drawn in the order of their file, so that prompts are those of the Hub's data only where
that order is.
"""

from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path

from onward.artifact import file_hash
from onward.errors import UserError
from onward.recipe import TASKS
from onward.tasks import originals
from onward.tasks.originals import Document
from onward.tasks.rows import read_json_lines
from onward.tasks.shots import split_shots

Splits = dict[str, list[Document]]

_ARC = ("arc/{0}-Test.jsonl", "{0}/{0}-Test.jsonl", "ARC-V1-Feb2018-2/{0}/{0}-Test.jsonl", "{0}-Test.jsonl")
_OPENBOOKQA = ("openbookqa", "Main", "OpenBookQA-V1-Sep2018/Data/Main")
_WIKITEXT = [
    f"{place}wiki.{{1}}.{kind}"
    for place in ("wikitext/", "wikitext-2-raw/", "wikitext-2/", "")
    for kind in ("raw", "tokens")
]
_WIKITEXT += [f"{place}wikitext2_{{1}}.txt" for place in ("wikitext/", "")]
_FILES: dict[str, dict[str, tuple[str, ...]]] = {
    "mmlu": {
        "test": ("mmlu/test/{0}_test.csv", "data/test/{0}_test.csv", "test/{0}_test.csv"),
        "dev": ("mmlu/dev/{0}_dev.csv", "data/dev/{0}_dev.csv", "dev/{0}_dev.csv"),
    },
    "ai2_arc": {"test": _ARC, "train": tuple(name.replace("Test", "Train") for name in _ARC)},
    "hellaswag": {"validation": ("hellaswag/hellaswag_val.jsonl", "hellaswag_val.jsonl")},
    "winogrande": {"validation": ("winogrande/dev.jsonl", "winogrande_1.1/dev.jsonl")},
    "boolq": {"validation": ("boolq/dev.jsonl", "BoolQ/val.jsonl")},
    "piqa": {
        "validation": ("piqa/valid.jsonl", "physicaliqa-train-dev/dev.jsonl"),
        "labels": ("piqa/valid-labels.lst", "physicaliqa-train-dev/dev-labels.lst"),
    },
    "openbookqa": {
        split: tuple(f"{name}/{split}.{kind}" for name in _OPENBOOKQA for kind in ("tsv", "jsonl"))
        for split in ("test", "train")
    },
    "lambada_openai": {"test": ("lambada/lambada_openai.jsonl", "lambada/test.jsonl", "lambada_test_en.jsonl")},
    "copa": {"validation": ("copa/copa_val.jsonl", "COPA/val.jsonl")},
    "wikitext_document_level": {
        "test": tuple(name.replace("{1}", "test") for name in _WIKITEXT),
        "validation": tuple(name.replace("{1}", "valid") for name in _WIKITEXT),
    },
}
_OPTIONAL = ("dev", "labels")
_ONLY_EXAMPLES = "train"
"""The split that is looked for only where examples are asked for: without them a score does not depend on it."""
_IN_PLACE_OF_TEST = {"wikitext_document_level": "validation"}
"""The split that is scored where the test file is not there."""
_SUBSETS = {
    "openbookqa": ("main",),
    "lambada_openai": (None, "default"),
    "wikitext_document_level": ("wikitext-2-raw-v1",),
}
"""Of these datasets, the only parts that the files hold; the others are other languages and other texts."""
_BENCHMARK = {"arc_easy": "ai2_arc", "arc_challenge": "ai2_arc", "wikitext": "wikitext_document_level"}
_BENCHMARK |= {task: task for task in (*TASKS, "openbookqa", "lambada_openai", "copa") if task not in _BENCHMARK}
_BENCHMARK |= {"mmlu_continuation": "mmlu"}
_SUFFIXES = ("", ".gz", ".zst")
_SUBSET = "SUBSET"
_MMLU = (
    "abstract_algebra=100 anatomy=135 astronomy=152 business_ethics=100 clinical_knowledge=265 college_biology=144 "
    "college_chemistry=100 college_computer_science=100 college_mathematics=100 college_medicine=173 "
    "college_physics=102 computer_security=100 conceptual_physics=235 econometrics=114 electrical_engineering=145 "
    "elementary_mathematics=378 formal_logic=126 global_facts=100 high_school_biology=310 high_school_chemistry=203 "
    "high_school_computer_science=100 high_school_european_history=165 high_school_geography=198 "
    "high_school_government_and_politics=193 high_school_macroeconomics=390 high_school_mathematics=270 "
    "high_school_microeconomics=238 high_school_physics=151 high_school_psychology=545 high_school_statistics=216 "
    "high_school_us_history=204 high_school_world_history=237 human_aging=223 human_sexuality=131 "
    "international_law=121 jurisprudence=108 logical_fallacies=163 machine_learning=112 management=103 marketing=234 "
    "medical_genetics=100 miscellaneous=783 moral_disputes=346 moral_scenarios=895 nutrition=306 philosophy=311 "
    "prehistory=324 professional_accounting=282 professional_law=1534 professional_medicine=272 "
    "professional_psychology=612 public_relations=110 security_studies=245 sociology=201 us_foreign_policy=100 "
    "virology=166 world_religions=171"
)
_EXAMPLES = 5
"""MMLU's questions with answers in each subject's dev file, which few-shot prompts begin with."""
_COUNTS: dict[tuple[str, str | None, str], int] = {
    ("mmlu", None, "dev"): _EXAMPLES,
    **{("mmlu", name, "test"): int(count) for name, _, count in (pair.partition("=") for pair in _MMLU.split())},
    ("ai2_arc", "ARC-Easy", "test"): 2376,
    ("ai2_arc", "ARC-Challenge", "test"): 1172,
    ("ai2_arc", "ARC-Easy", "train"): 2251,
    ("ai2_arc", "ARC-Challenge", "train"): 1119,
    ("hellaswag", None, "validation"): 10_042,
    ("winogrande", None, "validation"): 1267,
    ("boolq", None, "validation"): 3270,
    ("piqa", None, "validation"): 1838,
    ("openbookqa", None, "test"): 500,
    ("openbookqa", None, "train"): 4957,
    ("lambada_openai", None, "test"): 5153,
    ("copa", None, "validation"): 100,
    ("wikitext_document_level", None, "test"): 62,
    ("wikitext_document_level", None, "validation"): 60,
}
"""Items of each benchmark as published, by its part where they differ, and by split."""


def read_local(dataset: str, subset: str | None, data: Path, examples: bool = False) -> Splits:
    """Return the documents of a Hub dataset (`allenai/ai2_arc`, `ARC-Easy`) from local files, by split of the Hub.

    examples: there are to be some before each question, so that the training split is read where they come from it.
    Raises UserError when no reader knows the dataset, a file is missing, a row is not as the benchmark has it, or
    there are more or fewer than were published.
    """
    benchmark = benchmark_of(dataset, subset)
    if benchmark is None:
        todo = "leave this task out, or set evaluation.data to null to take its data from the Hub"
        got = f"{dataset} {subset or ''}".strip()
        raise UserError("no reader of local files for this dataset", "evaluation.data", got, ", ".join(_FILES), todo)
    found = _find_all(benchmark, subset, data, examples)
    splits = {role: _documents(benchmark, subset, path, found) for role, path in found.items() if role != "labels"}
    for split, documents in splits.items():
        _require_published(benchmark, subset, split, len(documents), found[split], data)
    return splits


def _documents(benchmark: str, subset: str | None, path: Path, found: Mapping[str, Path]) -> list[Document]:
    match benchmark:
        case "mmlu":
            return originals.mmlu(path, str(subset))
        case "piqa":
            return originals.piqa(path, found.get("labels"))
        case "openbookqa":
            return originals.openbookqa(path)
        case "wikitext_document_level":
            return originals.wikitext(path)
        case _:
            by_row = {
                "ai2_arc": originals.arc,
                "hellaswag": originals.hellaswag,
                "winogrande": originals.winogrande,
                "boolq": originals.boolq,
                "lambada_openai": originals.lambada,
                "copa": originals.copa,
            }
            return [by_row[benchmark](row) for row in read_json_lines(path)]


def _require_published(benchmark: str, subset: str | None, split: str, count: int, path: Path, data: Path) -> None:
    expected = _COUNTS.get((benchmark, subset, split), _COUNTS.get((benchmark, None, split)))
    # Prompts with fewer examples than published would be other prompts under the same name.
    is_example = split in ("dev", _ONLY_EXAMPLES)
    if expected is None or count == expected or (not is_example and _is_subset(path, data)):
        return
    todo = "fetch the original file again"
    if not is_example:
        todo += "; to score fewer items set evaluation.limit; where the file is meant to differ, "
        todo += f"put an empty file named {_SUBSET} into {path.parent}"
    what = "a benchmark file has another number of items than was published"
    raise UserError(what, str(path), f"{count} items", f"{expected} items", todo)


def _is_subset(path: Path, data: Path) -> bool:
    """Whether a file says, beside this one or above it, that items are lacking on purpose."""
    folders = [folder for folder in path.parents if folder == data or data in folder.parents]
    return any((folder / _SUBSET).exists() for folder in folders)


def data_fingerprints(tasks: Iterable[str], data: Path) -> dict[str, str]:
    """Return a hash of the local files behind each benchmark of `tasks` (of all for a task not of the seven).

    It depends on the files' content alone, not on where the folder stands, and on a training split only where a task
    has examples; a split that is scored in place of the test split is named after it. Raises UserError when there is
    no folder.
    """
    if not data.is_dir():
        todo = "give a folder with the benchmarks' original files, or set evaluation.data to null for the Hub's"
        raise UserError("there is no such folder of benchmark files", "evaluation.data", str(data), todo=todo)
    wanted: dict[str, bool] = {}
    for name, shots in map(split_shots, tasks):
        # Of a task that is not known here, lm-eval's own number of examples is not known either.
        for benchmark in (_BENCHMARK[name],) if name in _BENCHMARK else _FILES:
            wanted[benchmark] = wanted.get(benchmark, False) or bool(shots) or name not in _BENCHMARK
    return {benchmark: _fingerprint(benchmark, data, wanted[benchmark]) for benchmark in sorted(wanted)}


def _fingerprint(benchmark: str, data: Path, examples: bool) -> str:
    roles = _roles(benchmark, examples)
    other = _IN_PLACE_OF_TEST.get(benchmark)
    is_other = other is not None and not _find(data, roles["test"], None) and bool(_find(data, roles[other], None))
    return _hash_files(data, roles) + (f" ({other})" if is_other else "")


def _hash_files(data: Path, roles: Mapping[str, tuple[str, ...]]) -> str:
    patterns = [name.format("*") + suffix for names in roles.values() for name in names for suffix in _SUFFIXES]
    files = sorted({path for pattern in patterns for path in data.glob(pattern)})
    return sha256("".join(f"{path.name} {file_hash(path)}\n" for path in files).encode()).hexdigest()[:16]


def benchmark_of(dataset: str, subset: str | None) -> str | None:
    """Return which of the benchmarks above a Hub dataset is, None for any other."""
    # The owner's name before the slash has changed on the Hub more than once; the last part has not.
    last = dataset.rpartition("/")[2].lower()
    if last == "super_glue":
        last = str(subset)
    is_known = last in _FILES and (last not in _SUBSETS or subset in _SUBSETS[last])
    return last if is_known else None


def _roles(benchmark: str, examples: bool) -> dict[str, tuple[str, ...]]:
    return {role: names for role, names in _FILES[benchmark].items() if examples or role != _ONLY_EXAMPLES}


def _find_all(benchmark: str, subset: str | None, data: Path, examples: bool) -> dict[str, Path]:
    """Return the files that are there, by role."""
    roles = _roles(benchmark, examples)
    files = {role: _find(data, names, subset) for role, names in roles.items()}
    found = {role: path for role, path in files.items() if path is not None}
    other = _IN_PLACE_OF_TEST.get(benchmark)
    missing = [role for role in roles if role not in (*found, *_OPTIONAL, other)]
    if missing and other not in found:
        expected = " or ".join(name.format(subset) for name in roles[missing[0]]) + " (plain, .gz or .zst)"
        todo = "put the benchmark's original file there, leave the task out, or set evaluation.data to null"
        raise UserError("a benchmark file is missing", str(data), "no such file", expected, todo)
    return found


def _find(data: Path, names: tuple[str, ...], subset: str | None) -> Path | None:
    candidates = [data / (name.format(subset) + suffix) for name in names for suffix in _SUFFIXES]
    return next((candidate for candidate in candidates if candidate.is_file()), None)
