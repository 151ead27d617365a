import json
import subprocess
import sys
from pathlib import Path

import pytest

from onward.errors import UserError
from onward.model.tokenizer import LoadedTokenizer, read_saved_tokenizer, read_tokenizer, save_tokenizer


@pytest.fixture(scope="module")
def packaged(repository: Path) -> LoadedTokenizer:
    return read_tokenizer(repository / "src/onward/model/tiny")


def test_a_saved_tokenizer_is_read_back_as_it_was(tmp_path: Path, packaged: LoadedTokenizer) -> None:
    save_tokenizer(packaged, tmp_path / "corpus" / "tokenizer")
    assert read_saved_tokenizer(tmp_path / "corpus" / "tokenizer") == packaged
    files = {path.name: path.read_bytes() for path in (tmp_path / "corpus" / "tokenizer").iterdir()}
    save_tokenizer(packaged, tmp_path / "corpus" / "tokenizer")
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "corpus" / "tokenizer").iterdir()}
    # Any library that reads tokenizer.json can use it.
    from tokenizers import Tokenizer

    plain = Tokenizer.from_file(str(tmp_path / "corpus" / "tokenizer" / "tokenizer.json"))
    assert plain.encode("Some text.").ids == packaged.encode_batch(["Some text."])[0]


def test_line_ends_inside_the_tokenizer_survive(tmp_path: Path, packaged: LoadedTokenizer) -> None:
    odd = LoadedTokenizer(packaged.json.replace("{", "{\r\n", 1), 5, 6, 6, None, 70_000, "f")
    save_tokenizer(odd, tmp_path / "t")
    assert read_saved_tokenizer(tmp_path / "t") == odd


@pytest.mark.parametrize("damage", ["absent", "no ids", "no tokenizer", "cut", "other"])
def test_a_missing_or_damaged_one_is_the_users_to_mend(tmp_path: Path, packaged: LoadedTokenizer, damage: str) -> None:
    folder = tmp_path / "tokenizer"
    if damage != "absent":
        save_tokenizer(packaged, folder)
    if damage in ("no ids", "no tokenizer"):
        (folder / ("ids.json" if damage == "no ids" else "tokenizer.json")).unlink()
    if damage in ("cut", "other"):
        content = (folder / "ids.json").read_text()
        (folder / "ids.json").write_text(content[:20] if damage == "cut" else json.dumps({"eos": 1}))
    with pytest.raises(UserError, match="the tokenizer of this corpus cannot be read") as caught:
        read_saved_tokenizer(folder)
    assert (caught.value.where, caught.value.todo) == (str(folder), "prepare the corpus again")


def test_workers_need_no_transformers(repository: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from onward.model.tokenizer import LoadedTokenizer\n"
        "from onward.corpus.tokenise import choose_engine, encode\n"
        "text = Path(sys.argv[1]).read_text(encoding='utf-8')\n"
        "tokenizer = LoadedTokenizer(text, 0, None, 0, None, 8192, 'x')\n"
        "engine = choose_engine(tokenizer, ['a'])\n"
        "encode(['some words'], tokenizer, engine)\n"
        "print(engine.name, {'transformers', 'torch'} & set(sys.modules))"
    )
    path = repository / "src/onward/model/tiny/tokenizer.json"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "gigatoken set()"
