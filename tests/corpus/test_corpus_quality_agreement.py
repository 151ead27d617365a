"""Every rule decides as datatrove's filter of the same name; benchmarks/quality_agreement.py does it for more text."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("datatrove")
pytest.importorskip("spacy")
pytestmark = pytest.mark.filterwarnings("ignore")

FILES = {
    "domain/education/fineweb_edu_sample150.jsonl.zst": 80,
    "domain/legal/dc_code_sections.jsonl.zst": 1000,
    "domain/medical/medquad.jsonl.zst": 300,
    "domain/technical/cpp_docs.jsonl.zst": 500,
    "domain/technical/powershell_docs.jsonl.zst": 60,
    "general/storybooks.jsonl.zst": 150,
}
"""Documents of each file, the shortest of those spread over it: datatrove decides on .15 MB/s."""


@pytest.fixture(scope="module")
def agreement(repository: Path) -> ModuleType:
    path = repository / "benchmarks" / "quality_agreement.py"
    spec = importlib.util.spec_from_file_location("quality_agreement", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["quality_agreement"] = module
    spec.loader.exec_module(module)
    return module


def test_every_rule_decides_as_datatrove(shared_data: Path, agreement: ModuleType) -> None:
    texts: list[str] = []
    for name, number in FILES.items():
        of_file = list(agreement.read_texts(shared_data / name, False))
        spread = of_file[:: max(1, len(of_file) // (4 * number))]
        texts += sorted(spread, key=len)[:number]
    table: dict[str, object] = {}
    agreement.compare(texts, "sample", table)
    assert len(table) == 37
    shares = {name: row.share for name, row in table.items()}
    assert max(shares.values()) <= 0.002, {name: share for name, share in shares.items() if share > 0.002}
    # Rules that drop nothing would agree whatever they did.
    dropped = sum(row.dropped_theirs > 0 for row in table.values())
    assert dropped >= 20, dropped


ODD = [
    "",
    "\n",
    " ",
    "...",
    "word",
    "a\r\nb\r\n\r\nc",
    "one\vtwo\ftwo\x1cthree\u2028four\u0085five",
    "- a\n• b\n* c\n\n- d...",
    "# " * 60,
    "the be to of and that have with " * 10,
    "\n\n\n  para one\n\npara one\n\npara one\n\n",
    'Ends here. And here! (And here?) "And here." Not here...\nA [1] citation. A [citation needed] too.\nTwo words.\n',
    "Lorem Ipsum is here.\nWe use cookies on this site.\nEnable JavaScript, please.\nA { bracket } here.\n" * 3,
    "ten words in a line of this document, no more. " * 30,
    "1 2 3 4 5 6 7 8 9 0 " * 12,
    "これは文です。これも文です。" * 20,
]


def test_odd_texts(agreement: ModuleType) -> None:
    rules = agreement.pairs()
    for text in ODD:
        for name, (quality, make) in rules.items():
            if name.startswith("fineweb") and not text.strip():
                continue  # every FineWeb filter drops it; of ours, the one about punctuation
            try:
                theirs = agreement.their_decisions([text], {name: make()})[name]
            except ZeroDivisionError:  # no words, no lines or no characters: datatrove stops, we do not
                continue
            ours = agreement.our_decisions([text], {name: quality})[name]
            assert ours == theirs, (name, text)
