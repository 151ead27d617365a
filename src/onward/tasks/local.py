"""Readers of the benchmarks' original files, which turn them into documents of the Hub's schema.

Files are looked for under the names below, each plain or with .gz or .zst at its end; the first found is read.

| benchmark  | files, relative to `evaluation.data`                              | format                         |
|------------|-------------------------------------------------------------------|--------------------------------|
| MMLU       | {mmlu/,data/,}test/SUBJECT_test.csv, and dev/SUBJECT_dev.csv      | CSV, 6 columns, no header      |
| ARC        | {arc/,ARC-Easy/,ARC-V1-Feb2018-2/ARC-Easy/,}ARC-Easy-Test.jsonl   | question.stem, choices, key    |
| HellaSwag  | {hellaswag/,}hellaswag_val.jsonl                                  | ctx (or ctx_a, ctx_b), endings |
| WinoGrande | {winogrande/,winogrande_1.1/}dev.jsonl                            | sentence, option1, option2     |
| BoolQ      | {boolq/dev,BoolQ/val}.jsonl                                       | question, passage, answer      |
| PIQA       | piqa/valid.jsonl with valid-labels.lst, or the original archive's | goal, sol1, sol2; 0/1 per line |
|            | physicaliqa-train-dev/dev.jsonl with dev-labels.lst               |                                |
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from onward.artifact import file_hash
from onward.errors import UserError
from onward.recipe import TASKS
from onward.tasks.rows import Row, read_csv, read_json_lines, read_lines

Document = dict[str, Any]
Splits = dict[str, list[Document]]

_ARC = ("arc/{0}-Test.jsonl", "{0}/{0}-Test.jsonl", "ARC-V1-Feb2018-2/{0}/{0}-Test.jsonl", "{0}-Test.jsonl")
_FILES: dict[str, dict[str, tuple[str, ...]]] = {
    "mmlu": {
        "test": ("mmlu/test/{0}_test.csv", "data/test/{0}_test.csv", "test/{0}_test.csv"),
        "dev": ("mmlu/dev/{0}_dev.csv", "data/dev/{0}_dev.csv", "dev/{0}_dev.csv"),
    },
    "ai2_arc": {"test": _ARC},
    "hellaswag": {"validation": ("hellaswag/hellaswag_val.jsonl", "hellaswag_val.jsonl")},
    "winogrande": {"validation": ("winogrande/dev.jsonl", "winogrande_1.1/dev.jsonl")},
    "boolq": {"validation": ("boolq/dev.jsonl", "BoolQ/val.jsonl")},
    "piqa": {
        "validation": ("piqa/valid.jsonl", "physicaliqa-train-dev/dev.jsonl"),
        "labels": ("piqa/valid-labels.lst", "physicaliqa-train-dev/dev-labels.lst"),
    },
}
_OPTIONAL = ("dev", "labels")
_BENCHMARK = {"arc_easy": "ai2_arc", "arc_challenge": "ai2_arc"} | {
    task: task for task in TASKS if not task.startswith("arc")
}
_SUFFIXES = ("", ".gz", ".zst")


def read_local(dataset: str, subset: str | None, data: Path) -> Splits:
    """Return the documents of a Hub dataset (`allenai/ai2_arc`, `ARC-Easy`) from local files, by split of the Hub.

    Raises UserError when no reader knows the dataset, a file is missing, or a row is not as the benchmark has it.
    """
    benchmark = benchmark_of(dataset, subset)
    if benchmark is None:
        todo = "leave this task out, or set evaluation.data to null to take its data from the Hub"
        got = f"{dataset} {subset or ''}".strip()
        raise UserError("no reader of local files for this dataset", "evaluation.data", got, ", ".join(_FILES), todo)
    files = {role: _find(data, names, subset, role) for role, names in _FILES[benchmark].items()}
    found = {role: path for role, path in files.items() if path is not None}
    match benchmark:
        case "mmlu":
            return {split: _mmlu(path, str(subset)) for split, path in found.items()}
        case "ai2_arc":
            return {"test": [_arc(row) for row in read_json_lines(found["test"])]}
        case "hellaswag":
            return {"validation": [_hellaswag(row) for row in read_json_lines(found["validation"])]}
        case "winogrande":
            return {"validation": [_winogrande(row) for row in read_json_lines(found["validation"])]}
        case "boolq":
            return {"validation": [_boolq(row) for row in read_json_lines(found["validation"])]}
        case _:
            return {"validation": _piqa(found["validation"], found.get("labels"))}


def data_fingerprints(tasks: Iterable[str], data: Path) -> dict[str, str]:
    """Return a hash of the local files behind each benchmark of `tasks` (of all for a task not of the seven).

    It depends on the files' content alone, not on where the folder stands. Raises UserError when there is no folder.
    """
    if not data.is_dir():
        todo = "give a folder with the benchmarks' original files, or null for the Hub"
        raise UserError("there is no such folder of benchmark files", "evaluation.data", str(data), todo=todo)
    wanted: set[str] = set()
    for task in tasks:
        wanted |= {_BENCHMARK[task]} if task in _BENCHMARK else set(_FILES)
    return {benchmark: _hash_files(data, _FILES[benchmark]) for benchmark in sorted(wanted)}


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
    return last if last in _FILES else None


def _find(data: Path, names: tuple[str, ...], subset: str | None, role: str) -> Path | None:
    candidates = [data / (name.format(subset) + suffix) for name in names for suffix in _SUFFIXES]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None and role not in _OPTIONAL:
        expected = " or ".join(name.format(subset) for name in names) + " (plain, .gz or .zst)"
        todo = "put the benchmark's original file there, leave the task out, or set evaluation.data to null"
        raise UserError("a benchmark file is missing", str(data), "no such file", expected, todo)
    return path


def _mmlu(path: Path, subject: str) -> list[Document]:
    documents = []
    for row in read_csv(path):
        cells = row.content
        if len(cells) != 6:
            raise row.error(f"{len(cells)} columns", "6 columns without a header: question, A, B, C, D, answer")
        if cells[5] not in ("A", "B", "C", "D"):
            raise row.error(f"answer {cells[5]!r}", "A, B, C or D in the sixth column (no header line)")
        answer = "ABCD".index(cells[5])
        documents.append({"question": cells[0], "subject": subject, "choices": cells[1:5], "answer": answer})
    return documents


def _arc(row: Row) -> Document:
    """Official layout {id, question: {stem, choices: [{text, label}]}, answerKey}, labels A-E or 1-5."""
    question = row.inner("question", "an object with `stem` and `choices`")
    choices = [row.within(choice, "question.choices") for choice in question.sequence("choices")]
    labels = [choice.text("label") for choice in choices]
    key = row.text("answerKey")
    if len(labels) < 2:
        raise row.error(f"{len(labels)} choices", "at least two choices")
    if key not in labels:
        raise row.error(f"answerKey {key!r}", f"one of the labels {', '.join(labels)}")
    texts = [choice.text("text") for choice in choices]
    choice_columns = {"text": texts, "label": labels}
    return {"id": row.text("id"), "question": question.text("stem"), "choices": choice_columns, "answerKey": key}


_LAST_SENTENCE = re.compile(r'(?s)(.*[.!?]["\')]*)\s+([^.!?]*)')


def split_context(ctx: str) -> tuple[str, str]:
    """Split HellaSwag's `ctx` into `ctx_a` and `ctx_b`, for files that hold the whole only.

    lm-eval joins `ctx_a + " " + ctx_b.capitalize()`. WikiHow items (6,799 of 10,042) end in a full stop and have an
    empty ctx_b; ActivityNet items (3,243) end in a sentence that has only begun, which is ctx_b.
    """
    match = _LAST_SENTENCE.fullmatch(ctx)
    return (match[1], match[2]) if match else (ctx, "")


def _hellaswag(row: Row) -> Document:
    endings = [row.as_text(ending, "endings") for ending in row.sequence("endings")]
    if len(endings) < 2:
        raise row.error(f"{len(endings)} endings", "four endings")
    label = row.integer("label", len(endings))
    both = (row.text("ctx_a"), row.text("ctx_b")) if "ctx_a" in row.content else split_context(row.text("ctx"))
    return {
        "activity_label": row.text("activity_label"),
        "ctx_a": both[0],
        "ctx_b": both[1],
        "endings": endings,
        "label": str(label),
    }


def _winogrande(row: Row) -> Document:
    sentence, answer = row.text("sentence"), row.text("answer")
    if "_" not in sentence:
        raise row.error(f"sentence {sentence[:60]!r}", "a sentence with the gap `_`")
    if answer not in ("1", "2"):
        raise row.error(f"answer {answer!r}", '"1" or "2" (the test file has no answers; use dev)')
    return {"sentence": sentence, "option1": row.text("option1"), "option2": row.text("option2"), "answer": answer}


def _boolq(row: Row) -> Document:
    """Google's {question, answer, passage[, title]}, or SuperGLUE's {question, label, passage}.

    lm-eval reads SuperGLUE, whose passages open with `title -- `; Google's file has the title in a field of its own.
    """
    key = "answer" if "answer" in row.content else "label"
    label = row.content.get(key)
    if not isinstance(label, bool):
        raise row.error(f"{key} {label!r}", "`answer`: true or false")
    passage = row.text("passage")
    if "title" in row.content:
        passage = f"{row.text('title')} -- {passage}"
    return {"question": row.text("question"), "passage": passage, "label": int(label)}


def _piqa(path: Path, labels_path: Path | None) -> list[Document]:
    rows = list(read_json_lines(path))
    labels = [row.integer("label", 2) for row in rows] if labels_path is None else list(_piqa_labels(labels_path))
    if len(labels) != len(rows):
        got, expected = f"{len(labels)} labels", f"{len(rows)} labels, one for each line of {path.name}"
        raise UserError("PIQA's labels do not fit its questions", str(labels_path), got, expected)
    documents = []
    for row, label in zip(rows, labels, strict=True):
        texts = {key: row.text(key) for key in ("goal", "sol1", "sol2")}
        documents.append({**texts, "label": label})
    return documents


def _piqa_labels(path: Path) -> Iterator[int]:
    for number, line in read_lines(path):
        if line.strip() not in ("0", "1"):
            raise UserError("a label of PIQA is out of range", f"{path}, line {number}", line.strip()[:60], "0 or 1")
        yield int(line)
