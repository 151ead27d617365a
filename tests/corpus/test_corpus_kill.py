"""Killed with -9 while it prepares, the next call makes the same artifact."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from onward.artifact import Folders, building, file_hash
from onward.corpus.prepare import PreparedCorpus, prepare
from onward.errors import UserError
from onward.model.tokenizer import LoadedTokenizer
from onward.recipe import Corpus

SCRIPT = """
import sys
from pathlib import Path
from onward.artifact import Folders
from onward.corpus import examine
from onward.corpus.prepare import prepare
from onward.model.tokenizer import LoadedTokenizer
from onward.recipe import Corpus, Source
examine.CHUNK_CHARACTERS = 50_000
json, data, place = sys.argv[1:]
tokenizer = LoadedTokenizer(Path(json).read_text(encoding="utf-8"), 0, None, 0, None, 8192, "tiny")
folders = Folders(Path(place), Path(place))
print("started", flush=True)
prepare(Corpus.model_validate({"sources": [{"path": data}], "held_out": {"share": "5%"}}), tokenizer=tokenizer,
        sequence_tokens=100, wanted_tokens=None, seed=0, folders=folders, workers=1)
"""


def contents(prepared: PreparedCorpus) -> dict[str, str]:
    return {path.name: file_hash(path) for path in prepared.path.iterdir() if path.name != "manifest.json"}


def whole(data: str, place: Path, tokenizer: LoadedTokenizer, **fields: Any) -> PreparedCorpus:
    corpus = Corpus.model_validate({"sources": [{"path": data}], "held_out": {"share": "5%"}, **fields})
    options: dict[str, Any] = {"tokenizer": tokenizer, "folders": Folders(place, place), "workers": 1}
    return prepare(corpus, sequence_tokens=100, wanted_tokens=None, seed=0, **options)


def test_killed_at_any_moment_it_is_made_anew_and_the_same(
    repository: Path, shared_data: Path, tmp_path: Path, tiny_tokenizer: LoadedTokenizer
) -> None:
    data = str(shared_data / "domain/education/openstax_principles-finance.jsonl.zst")
    expected = contents(whole(data, tmp_path / "whole", tiny_tokenizer))
    arguments = [str(repository / "src/onward/model/tiny/tokenizer.json"), data, str(tmp_path / "killed")]
    for delay in (0.05, 0.3):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        with process.stdout as output:
            assert output.readline() == "started\n"
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        visible = [path for path in (tmp_path / "killed/corpora").glob("*") if not path.name.startswith(".")]
        assert visible == [], "an artifact appears only when it is whole"
    again = whole(data, tmp_path / "killed", tiny_tokenizer)
    assert contents(again) == expected
    assert [path.name for path in again.path.parent.iterdir()] == [again.fingerprint]


def test_two_processes_do_not_build_the_same_artifact(tmp_path: Path, tiny_tokenizer: LoadedTokenizer) -> None:
    data = tmp_path / "x.txt"
    data.write_text("One line.\nAnother line.\nAnd here is a third line, the longest of them all.")
    first = whole(str(data), tmp_path, tiny_tokenizer, quality="none")
    (first.path / "manifest.json").unlink()
    with building(first.path, "corpus", {}), pytest.raises(UserError, match="another process is making this artifact"):
        whole(str(data), tmp_path, tiny_tokenizer, quality="none")
