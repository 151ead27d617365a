"""What the items of a task say in their own words: no prompt template, no examples. A corpus is searched for it."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from onward.errors import UserError
from onward.tasks.local import Document, benchmark_of
from onward.tasks.parts import parts_of

_MARKERS = re.compile(r"\[.*?\]")
"""`[header]`, `[title]`, `[step]`, `[substeps]` in HellaSwag's WikiHow half; lm-eval removes them as well."""


@dataclass(frozen=True)
class Question:
    """The raw text of one item.

    id: the same as that of the scored item. texts: each would give the item away if it stood in a text: a passage,
    a question alone, a question with its options, a sentence with its right ending. answer: the right answer in
    words, None where `texts` hold it or where it says nothing of its own (yes and no).
    """

    task: str
    id: str
    texts: tuple[str, ...]
    answer: str | None


def load_questions(tasks: Iterable[str], data: Path | None, limit: int | None) -> dict[str, tuple[Question, ...]]:
    """Return the questions of each task: exactly the items that `load_items` gives for the same arguments.

    No prompt is built, which is most of the cost: the seven tasks take 3 s instead of 50. Raises UserError as
    `load_items` does for unknown tasks and unreadable data.
    """
    return {task: tuple(_questions(task, data, limit)) for task in dict.fromkeys(tasks)}


def _questions(task: str, data: Path | None, limit: int | None) -> Iterator[Question]:
    for part in parts_of(task, data, limit):
        if not part.count:
            continue
        documents = part.documents()
        benchmark = benchmark_of(part.definition.dataset, part.definition.subset)
        known = benchmark is not None and all(field in documents[0] for field in _FIELDS[benchmark])
        built = None if known else part.build()
        for index, document in enumerate(documents):
            name = part.item_id(index)
            try:
                found = _known(str(benchmark), document) if known else _shown(built, document)
            except (KeyError, TypeError, ValueError, IndexError) as error:
                got = f"{type(error).__name__}: {error}"[:200]
                raise UserError("an item's text cannot be read", f"{task}, item {name}", got) from error
            texts, answer = found
            yield Question(task, name, tuple(filter(None, dict.fromkeys(texts))), answer)


_FIELDS = {
    "mmlu": ("question", "choices", "answer"),
    "ai2_arc": ("question", "choices", "answerKey"),
    "hellaswag": ("ctx_a", "ctx_b", "endings", "label"),
    "winogrande": ("sentence", "option1", "option2", "answer"),
    "boolq": ("passage", "question"),
    "piqa": ("goal", "sol1", "sol2", "label"),
}


def _known(benchmark: str, document: Document) -> tuple[Sequence[str], str | None]:
    """Return texts and answer of a document of one of the seven tasks, by the fields that the Hub has."""
    match benchmark:
        case "mmlu":
            question, options = document["question"], document["choices"]
            return (_joined(question, *options), question), options[int(document["answer"])]
        case "ai2_arc":
            question, options = document["question"], document["choices"]["text"]
            right = document["choices"]["label"].index(document["answerKey"])
            return (_joined(question, *options), question), options[right]
        case "hellaswag":
            ending = document["endings"][int(document["label"])]
            return (_MARKERS.sub(" ", _joined(document["ctx_a"], document["ctx_b"], ending)),), None
        case "winogrande":
            before, _, after = document["sentence"].partition("_")
            # As the benchmark's own file has it, and as the true sentence reads.
            return (before + after, before + document[f"option{document['answer']}"] + after), None
        case "boolq":
            return (document["passage"], document["question"]), None
        case _:
            return (_joined(document["goal"], document["sol2" if int(document["label"]) else "sol1"]),), None


def _shown(built: Any, document: Document) -> tuple[Sequence[str], str | None]:
    """Return texts and answer of any other task's document: of its own strings those that its prompt shows.

    Strings of the document itself (a passage, a question) are texts each; the last in the prompt is taken for the
    question, and stands once more with the options. Where the prompt shows none, it is itself the text.
    """
    choices = [str(choice) for choice in built.doc_to_choice(document)]
    if built.multiple_input:  # contexts differ by choice, as in WinoGrande: the right one with what follows
        return (_joined(choices[int(built.doc_to_text(document))], str(built.doc_to_target(document))),), None
    prompt = str(built.doc_to_text(document))
    own = [value.strip() for value in document.values() if isinstance(value, str)]
    inner = [value.strip() for value in document.values() if not isinstance(value, str) for value in _strings(value)]
    shown = sorted({value for value in own if value and value in prompt and value not in choices}, key=prompt.rfind)
    if not any(choice.strip() in chain(own, inner) for choice in choices):  # letters: the prompt shows the options
        options = [value for value in inner if value and value in prompt]
        choices = options if len(options) == len(choices) else []
    target = built.doc_to_target(document)
    answer = choices[target] if isinstance(target, int) and 0 <= target < len(choices) else None
    answer = target if isinstance(target, str) and target in choices else answer
    return (*shown, _joined(shown[-1] if shown else prompt, *choices)), answer


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def _joined(*texts: str) -> str:
    return " ".join(text.strip() for text in texts if text.strip())
