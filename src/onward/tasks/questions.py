"""What the items of a task say in their own words: no prompt template, no examples. A corpus is searched for it."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from onward.errors import UserError
from onward.tasks.local import benchmark_of, data_fingerprints
from onward.tasks.originals import Document
from onward.tasks.parts import parts_of
from onward.tasks.revisions import revisions_of
from onward.tasks.shots import all_wrong_names

_MARKERS = re.compile(r"\[.*?\]")
"""`[header]`, `[title]`, `[step]`, `[substeps]` in HellaSwag's WikiHow half; lm-eval removes them as well."""


@dataclass(frozen=True)
class Question:
    """The raw text of one item.

    id: the same as that of the scored item. texts: each is complete and gives the item away where it stands: a
    passage, a question with its options, a sentence with its right ending. asked: the question alone, or a sentence
    to be completed by one of the options; None where `texts` say it all. answer: the right option, None where it
    says nothing of its own (yes and no).
    """

    task: str
    id: str
    texts: tuple[str, ...]
    asked: str | None = None
    answer: str | None = None


def item_facts(tasks: Iterable[str], data: Path | None, limit: int | None) -> dict[str, Any]:
    """Return what determines the items of these tasks, without loading one: for the fingerprint of what uses them.

    The Hub's data count by their revisions, which may be asked for over the network, once.
    """
    names = list(dict.fromkeys(tasks))
    if not names:
        return {"tasks": [], "limit": limit}
    with all_wrong_names(names):
        source = revisions_of(names) if data is None else data_fingerprints(names, data)
    return {"tasks": names, "limit": limit, "data": source, "lm_eval": version("lm_eval")}


def load_questions(tasks: Iterable[str], data: Path | None, limit: int | None) -> dict[str, tuple[Question, ...]]:
    """Return the questions of each task: exactly the items that `load_items` gives for the same arguments.

    No prompt is built, which is most of the cost: half a second instead of six for the seven tasks. Raises UserError as
    `load_items` does for unknown tasks and unreadable data.
    """
    from onward.tasks.harness import templates_compiled_once

    with templates_compiled_once():
        return {task: tuple(_questions(task, data, limit)) for task in dict.fromkeys(tasks)}


def _questions(task: str, data: Path | None, limit: int | None) -> Iterator[Question]:
    for part in parts_of(task, data, limit):
        if not part.count:
            continue
        documents = part.documents()
        benchmark = benchmark_of(part.definition.dataset, part.definition.subset)
        known = benchmark in _FIELDS and all(field in documents[0] for field in _FIELDS[str(benchmark)])
        built = None if known else part.build()
        for index, document in enumerate(documents):
            name = part.item_id(index)
            try:
                yield _known(str(benchmark), task, name, document) if known else _shown(built, task, name, document)
            except (KeyError, TypeError, ValueError, IndexError) as error:
                got = f"{type(error).__name__}: {error}"[:200]
                raise UserError("an item's text cannot be read", f"{task}, item {name}", got) from error


_FIELDS = {
    "mmlu": ("question", "choices", "answer"),
    "ai2_arc": ("question", "choices", "answerKey"),
    "hellaswag": ("ctx_a", "ctx_b", "endings", "label"),
    "winogrande": ("sentence", "option1", "option2", "answer"),
    "boolq": ("passage", "question"),
    "piqa": ("goal", "sol1", "sol2", "label"),
}


def _known(benchmark: str, task: str, name: str, document: Document) -> Question:
    """Return the text of a document of one of the seven tasks, by the fields that the Hub has."""
    match benchmark:
        case "mmlu":
            question, options = document["question"], document["choices"]
            return Question(task, name, (_joined(question, *options),), question, options[int(document["answer"])])
        case "ai2_arc":
            question, options = document["question"], document["choices"]["text"]
            right = document["choices"]["label"].index(document["answerKey"])
            return Question(task, name, (_joined(question, *options),), question, options[right])
        case "hellaswag":
            ending = document["endings"][int(document["label"])]
            whole = _joined(document["ctx_a"], document["ctx_b"], ending)
            return Question(task, name, (_MARKERS.sub(" ", whole),))
        case "winogrande":
            before, _, after = document["sentence"].partition("_")
            right = document[f"option{document['answer']}"]
            # As the benchmark's own file has it, and as the true sentence reads.
            return Question(task, name, (before + after, before + right + after))
        case "boolq":  # its questions come without the mark that lm-eval's prompt gives them
            return Question(task, name, (document["passage"],), f"{document['question']}?")
        case _:
            right = document["sol2" if int(document["label"]) else "sol1"]
            return Question(task, name, (_joined(document["goal"], right),))


def _shown(built: Any, task: str, name: str, document: Document) -> Question:
    """Return the text of any other task's document: of its own strings those that its prompt shows.

    The last of them in the prompt is taken for the question, those before it for passages. Where the prompt shows
    none, it is itself the question. Where nothing is chosen, the text with its continuation is all there is.
    """
    if built.OUTPUT_TYPE != "multiple_choice":
        return Question(task, name, (_joined(str(built.doc_to_text(document)), str(built.doc_to_target(document))),))
    choices = [str(choice) for choice in built.doc_to_choice(document)]
    if built.multiple_input:  # contexts differ by choice, as in WinoGrande: the right one with what follows
        right = choices[int(built.doc_to_text(document))]
        return Question(task, name, (_joined(right, str(built.doc_to_target(document))),))
    prompt = str(built.doc_to_text(document))
    own = [value.strip() for value in document.values() if isinstance(value, str)]
    inner = [text.strip() for value in document.values() if not isinstance(value, str) for text in _strings(value)]
    shown = sorted({text for text in own if text and text in prompt and text not in choices}, key=prompt.rfind)
    if not any(choice.strip() in (*own, *inner) for choice in choices):  # letters: the prompt shows the options
        options = [text for text in inner if text and text in prompt]
        choices = options if len(options) == len(choices) else []
    target = built.doc_to_target(document)
    answer = choices[target] if isinstance(target, int) and 0 <= target < len(choices) else None
    answer = target if isinstance(target, str) and target in choices else answer
    *passages, asked = shown or [prompt]
    return Question(task, name, (*passages, _joined(asked, *choices)), asked, answer)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def _joined(*texts: str) -> str:
    return " ".join(text.strip() for text in texts if text.strip())
