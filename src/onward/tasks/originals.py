"""Rows of the benchmarks' original files as documents of the Hub's schema, which is what lm-eval's prompts read."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onward.errors import UserError
from onward.tasks.rows import Row, read_csv, read_json_lines, read_lines

Document = dict[str, Any]


def mmlu(path: Path, subject: str) -> list[Document]:
    """Six columns without a header: question, four options, the right one's letter."""
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


def arc(row: Row) -> Document:
    """Official layout {id, question: {stem, choices: [{text, label}]}, answerKey}, labels A-E or 1-5."""
    question = row.inner("question", "an object with `stem` and `choices`")
    choices = [row.within(choice, "question.choices") for choice in question.sequence("choices")]
    texts = [row.as_choice(one.text("text"), "question.choices") for one in choices]
    columns = {"text": texts, "label": [one.text("label") for one in choices]}
    key = _require_key(row, columns, row.text("answerKey"))
    return {"id": row.text("id"), "question": question.text("stem"), "choices": columns, "answerKey": key}


def _require_key(row: Row, choices: dict[str, list[str]], key: str) -> str:
    labels = choices["label"]
    if len(labels) < 2:
        raise row.error(f"{len(labels)} choices", "at least two choices")
    if key not in labels:
        raise row.error(f"answerKey {key!r}", f"one of the labels {', '.join(labels)}")
    return key


_LAST_SENTENCE = re.compile(r'(?s)(.*[.!?]["\')]*)\s+([^.!?]*)')


def split_context(ctx: str) -> tuple[str, str]:
    """Split HellaSwag's `ctx` into `ctx_a` and `ctx_b`, for files that hold the whole only.

    lm-eval joins `ctx_a + " " + ctx_b.capitalize()`. WikiHow items (6,799 of 10,042) end in a full stop and have an
    empty ctx_b; ActivityNet items (3,243) end in a sentence that has only begun, which is ctx_b.
    """
    match = _LAST_SENTENCE.fullmatch(ctx)
    return (match[1], match[2]) if match else (ctx, "")


def hellaswag(row: Row) -> Document:
    """{activity_label, ctx (or ctx_a and ctx_b), endings, label}."""
    endings = [row.as_choice(ending, "endings") for ending in row.sequence("endings")]
    if len(endings) != 4:
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


def winogrande(row: Row) -> Document:
    """{sentence with `_`, option1, option2, answer: "1" or "2"}."""
    sentence, answer = row.text("sentence"), row.text("answer")
    if "_" not in sentence:
        raise row.error(f"sentence {sentence[:60]!r}", "a sentence with the gap `_`")
    if answer not in ("1", "2"):
        raise row.error(f"answer {answer!r}", '"1" or "2" (the test file has no answers; use dev)')
    return {"sentence": sentence, "option1": row.choice("option1"), "option2": row.choice("option2"), "answer": answer}


def boolq(row: Row) -> Document:
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


def piqa(path: Path, labels_path: Path | None) -> list[Document]:
    """{goal, sol1, sol2}, with the labels in a file of their own, one a line."""
    rows = list(read_json_lines(path))
    labels = [row.integer("label", 2) for row in rows] if labels_path is None else list(_piqa_labels(labels_path))
    if len(labels) != len(rows):
        got, expected = f"{len(labels)} labels", f"{len(rows)} labels, one for each line of {path.name}"
        raise UserError("PIQA's labels do not fit its questions", str(labels_path), got, expected)
    documents = []
    for row, label in zip(rows, labels, strict=True):
        documents.append(
            {"goal": row.text("goal"), "sol1": row.choice("sol1"), "sol2": row.choice("sol2"), "label": label}
        )
    return documents


def _piqa_labels(path: Path) -> Iterator[int]:
    for number, line in read_lines(path):
        if line.strip() not in ("0", "1"):
            raise UserError("a label of PIQA is out of range", f"{path}, line {number}", line.strip()[:60], "0 or 1")
        yield int(line)


_OPENBOOKQA = ("ID", "Question Stem", "Choices", "Complete Question", "Answer Key")
_LETTER = re.compile(r"(?:^| )\(([A-Z])\) ")


def openbookqa(path: Path) -> list[Document]:
    """The official table with a header, whose third column reads `(A) one (B) two ...`; or JSONL as ARC's."""
    if ".tsv" not in path.suffixes:
        documents = map(arc, read_json_lines(path))
        return [{**document, "question_stem": document.pop("question")} for document in documents]
    found = []
    for number, line in read_lines(path):
        cells = line.rstrip("\r\n").split("\t")
        row = Row(path, number, cells)
        if len(cells) != len(_OPENBOOKQA) or (number == 1 and tuple(cells) != _OPENBOOKQA):
            expected = f"a first line and {len(_OPENBOOKQA)} columns: {', '.join(_OPENBOOKQA)}"
            raise row.error(f"{len(cells)} columns: {line[:60]!r}", expected)
        if number > 1:
            _, *pieces = _LETTER.split(cells[2])
            choices = {"text": [row.as_choice(text, "Choices") for text in pieces[1::2]], "label": pieces[::2]}
            key = _require_key(row, choices, cells[4].strip())
            found.append({"id": cells[0], "question_stem": cells[1], "choices": choices, "answerKey": key})
    return found


def lambada(row: Row) -> Document:
    """{text}, or {context, continuation} with the last word by itself."""
    if "text" in row.content:
        text = row.text("text")
    else:
        text = f"{row.text('context').rstrip(' ')} {row.text('continuation').strip(' ')}"
    if " " not in text:
        raise row.error(f"text {text[:60]!r}", "a text of several words")
    return {"text": text}


_COPA = {"because": "cause", "therefore": "effect"}


def copa(row: Row) -> Document:
    """SuperGLUE's {premise, choice1, choice2, question, label}, or {query, choices, gold} with the sentence begun."""
    if "query" not in row.content:
        texts = {key: row.text(key) for key in ("premise", "question")}
        texts |= {key: row.choice(key) for key in ("choice1", "choice2")}
        if texts["question"] not in _COPA.values():
            raise row.error(f"question {texts['question']!r}", "cause or effect")
        return {**texts, "label": row.integer("label", 2)}
    begun, _, last = row.text("query").rpartition(", ")
    choices = [row.as_choice(choice, "choices") for choice in row.sequence("choices")]
    if last not in _COPA or not begun:
        raise row.error(f"query {row.content['query'][-40:]!r}", "a query that ends in `, because` or `, therefore`")
    if len(choices) != 2:
        raise row.error(f"{len(choices)} choices", "two choices")
    both = {"choice1": choices[0], "choice2": choices[1]}
    return {"premise": f"{begun}.", **both, "question": _COPA[last], "label": row.integer("gold", 2)}


def wikitext(path: Path) -> list[Document]:
    """Articles of the file as published: each begins with its title, ` = Title = `."""
    pages: list[list[str]] = [[]]
    for _, line in read_lines(path):
        # Deeper headings are ` = = Section = = `.
        if re.fullmatch(r"= [^=].* =", line.strip()):
            pages.append([])
        pages[-1].append(line)
    return [{"page": "".join(page)} for page in pages if "".join(page).strip()]
