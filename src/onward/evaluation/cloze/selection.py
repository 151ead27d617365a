"""Which gaps become items: proposed document by document, then chosen so that the n-gram model knows nothing."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onward.evaluation.cloze.artifact import CHOICES, ClozeItem
from onward.evaluation.cloze.distractors import Distractors, by_rank
from onward.evaluation.cloze.gaps import Gap, Sentences
from onward.evaluation.cloze.ngrams import NGrams
from onward.evaluation.cloze.terms import Terms
from onward.evaluation.cloze.words import BOUNDARY, Document, Ids
from onward.progress import Progress

PER_DOCUMENT = 10
"""Most items of one document, so that no long one is the whole benchmark."""
_TERMS = 4
"""Terms looked at for each item that a document may give, the most telling ones."""
_SPARE = 3
"""Items proposed for each one wanted: some are dropped to balance what the n-gram model knows."""


@dataclass(frozen=True)
class Proposal:
    """A gap with what may fill it. scores: ln p of the pool by the n-gram model; answer: of the right term."""

    document: int
    nth: int
    gap: Gap
    term: int
    pool: tuple[int, ...]
    scores: NDArray[np.float64]
    answer: float


@dataclass(frozen=True)
class Material:
    """What proposals are made from. folded: ids of each held-out document's pieces; groups: documents by group."""

    documents: Sequence[Document]
    folded: Sequence[Ids]
    vocabulary_folded: Ids
    terms: Terms
    ngrams: NGrams


def propose(
    material: Material, wanted: int, generator: np.random.Generator, rejected: Counter[str], progress: Progress
) -> list[Proposal]:
    """Return gaps of the documents' most telling terms, a few of each document, in an order that favours none."""
    documents = material.documents
    per_document = min(PER_DOCUMENT, max(1, math.ceil(_SPARE * wanted / max(1, len(documents)))))
    distractors = Distractors(material.terms)
    members: dict[str, list[int]] = {}
    for number, document in enumerate(documents):
        members.setdefault(document.group, []).append(number)
    telling = _telling(material.terms, len(documents), per_document * _TERMS)
    found: list[Proposal] = []
    seen: set[str] = set()
    progress.begin("looking for cloze items", len(documents), "documents")
    done = 0
    for group in members.values():
        if any(len(telling[number]) for number in group):
            material.ngrams.leave_out([material.folded[number] for number in group])
        for number in group:
            terms = telling[number][generator.permutation(len(telling[number]))]
            new = _of_document(material, number, terms, distractors, generator, rejected, seen)
            found += [proposal for proposal, _ in zip(new, range(per_document), strict=False)]
            done += 1
            progress.advance(done)
    order = generator.permutation(len(found))
    return sorted((found[place] for place in order), key=lambda proposal: proposal.nth)


def choose(
    proposals: Sequence[Proposal],
    material: Material,
    wanted: int,
    generator: np.random.Generator,
    rejected: Counter[str],
) -> list[ClozeItem]:
    """Choose items, with distractors such that the n-gram model is right in exactly a quarter of them, by lot.

    Whether the right term is the model's first, second, third or last choice is drawn for each item, and only items
    that could have had each of the four are taken. Dropping what the model solves would leave items on which it is
    wrong: whoever believes the opposite of it would be right. Filling quotas from items of all sorts would do the same
    within each sort: the model would be right on frequent terms and wrong on rare ones.
    """
    free = [proposal for proposal in proposals if _is_free(proposal)]
    rejected["the n-gram model is too sure"] += len(proposals) - len(free)
    free = free[: min(wanted, len(free)) // CHOICES * CHOICES]
    ranks = [rank for _ in range(0, len(free), CHOICES) for rank in generator.permutation(CHOICES).tolist()]
    items = []
    for proposal, rank in zip(free, ranks, strict=True):
        chosen = by_rank(proposal.scores, proposal.answer, rank, CHOICES - 1, generator)
        items.append(_item(proposal, material, chosen, generator))
    return sorted(items, key=lambda item: item.id)


def _telling(terms: Terms, documents: int, most: int) -> list[NDArray[np.int64]]:
    """Return the most telling terms of each document."""
    order = np.lexsort((terms.term, -terms.weight, terms.document))
    starts = np.searchsorted(terms.document[order], np.arange(documents + 1))
    chosen = zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
    return [terms.term[order[low : min(high, low + most)]] for low, high in chosen]


def _of_document(
    material: Material,
    number: int,
    terms: NDArray[np.int64],
    distractors: Distractors,
    generator: np.random.Generator,
    rejected: Counter[str],
    seen: set[str],
) -> Iterator[Proposal]:
    """Yield the proposals of one document, at most one for each term and each sentence."""
    document, nth = material.documents[number], 0
    parts = Sentences(document)
    used: set[int] = set()
    for term in terms.tolist():
        text = material.terms.texts[term]
        for place in generator.permutation(_places(document.pieces, material.terms.forms[term])).tolist():
            gap = parts.gap(text, int(document.begins[place]), rejected)
            if gap is None:
                continue
            # The sentence without the term: text filled into templates would else ask the same again and again.
            begin = parts.begin_of(gap)
            key = " ".join(f"{document.text[begin : gap.begin]}_{document.text[gap.end : gap.stop]}".lower().split())
            if gap.sentence in used or key in seen:
                rejected["the sentence is an item already"] += 1
                continue
            before = document.text[max(0, gap.begin - 40) : gap.begin].split()[-1].lower()
            pool = distractors.pool(term, parts.lowered, before)
            if len(pool) < CHOICES - 1:
                rejected["too few distractors"] += 1
                break
            scores = material.ngrams.logprobs(_rows(material, number, place, [term, *pool]))
            used.add(gap.sentence)
            seen.add(key)
            yield Proposal(number, nth, gap, term, tuple(pool), scores[1:], float(scores[0]))
            nth += 1
            break


def _places(pieces: Ids, form: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return where a term of one or two pieces stands."""
    first, second = form.tolist()
    places = np.flatnonzero(pieces == first)
    if second < 0:
        return places
    places = places[places + 1 < len(pieces)]
    found: NDArray[np.int64] = places[pieces[places + 1] == second]
    return found


def _rows(material: Material, number: int, place: int, terms: list[int]) -> Ids:
    """Return the folded pieces that the n-gram model reads: two before, the term, two behind [terms, 5 or 6]."""
    forms = material.terms.forms[terms]
    words = forms if forms[0, 1] >= 0 else forms[:, :1]
    around = np.concatenate([[BOUNDARY] * 2, material.folded[number], [BOUNDARY] * 2])
    end = place + 2 + words.shape[1]
    before, after = around[place : place + 2], around[end : end + 2]
    fold = material.vocabulary_folded[words]
    rows = [np.broadcast_to(side, (len(terms), 2)) for side in (before, after)]
    return np.concatenate([rows[0], fold, rows[1]], axis=1).astype(np.int32)


def _is_free(proposal: Proposal) -> bool:
    """Return whether the pool allows the right term to be any of the n-gram model's choices."""
    above, below = (proposal.scores > proposal.answer).sum(), (proposal.scores < proposal.answer).sum()
    return bool(min(above, below) >= CHOICES - 1)


def _item(
    proposal: Proposal, material: Material, chosen: NDArray[np.int64], generator: np.random.Generator
) -> ClozeItem:
    document, gap, terms = material.documents[proposal.document], proposal.gap, material.terms
    numbers = [proposal.term, *(proposal.pool[place] for place in chosen.tolist())]
    scores = [proposal.answer, *proposal.scores[chosen].tolist()]
    order = generator.permutation(CHOICES).tolist()
    return ClozeItem(
        id=f"{document.id}:{gap.begin}",
        document=document.id,
        source=document.source,
        group=document.group,
        context=document.text[gap.start : gap.begin].rstrip(" "),
        rest=document.text[gap.end : gap.stop],
        choices=tuple(terms.texts[numbers[place]] for place in order),
        gold=order.index(0),
        kind=terms.kinds[proposal.term],
        count=int(terms.counts[proposal.term]),
        ngram=tuple(round(scores[place], 6) for place in order),
    )
