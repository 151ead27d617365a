"""The readers of original benchmark files: on the real ones, and on broken ones."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import zstandard

from onward.errors import UserError
from onward.tasks.local import data_fingerprints, read_local
from onward.tasks.originals import split_context

EXPECTED = [
    ("allenai/ai2_arc", "ARC-Easy", "test", 2376),
    ("allenai/ai2_arc", "ARC-Challenge", "test", 1172),
    ("Rowan/hellaswag", None, "validation", 10042),
    ("allenai/winogrande", "winogrande_xl", "validation", 1267),
    ("aps/super_glue", "boolq", "validation", 3270),
    ("baber/piqa", None, "validation", 1838),
    ("allenai/openbookqa", "main", "test", 500),
    ("EleutherAI/lambada_openai", "default", "test", 5153),
    ("aps/super_glue", "copa", "validation", 100),
]


@pytest.fixture(scope="module")
def bench(shared_data: Path) -> Path:
    return shared_data / "bench"


@pytest.mark.parametrize(("dataset", "subset", "split", "count"), EXPECTED)
def test_real_files_are_read_whole(bench: Path, dataset: str, subset: str | None, split: str, count: int) -> None:
    assert len(read_local(dataset, subset, bench)[split]) == count


def test_real_mmlu(bench: Path) -> None:
    subjects = sorted(path.name.removesuffix("_test.csv") for path in (bench / "mmlu" / "test").glob("*.csv"))
    read = {subject: read_local("cais/mmlu", subject, bench) for subject in subjects}
    assert len(subjects) == 57
    assert sum(len(splits["test"]) for splits in read.values()) == 14042
    assert all(len(splits["dev"]) == 5 for splits in read.values())
    assert {document["answer"] for splits in read.values() for document in splits["test"]} == {0, 1, 2, 3}


def test_real_hellaswag_contexts(bench: Path) -> None:
    """6,799 WikiHow and 3,243 ActivityNet items; what lm-eval makes of the halves is the whole, capitalised."""
    path = bench / "hellaswag" / "hellaswag_val.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        wholes = [json.loads(line)["ctx"] for line in file]
    documents = read_local("Rowan/hellaswag", None, bench)["validation"]
    halves = [(document["ctx_a"], document["ctx_b"]) for document in documents]
    assert sum(second == "" for _, second in halves) == 6799
    for whole, (first, second) in zip(wholes, halves, strict=True):
        assert f"{first} {second}".strip().lower() == whole.strip().lower()
        if second:
            assert second == second.lower(), "ActivityNet is lower case, so capitalize() changes one letter only"
            assert first.rstrip("\"')")[-1] in ".!?"


@pytest.mark.parametrize(
    ("ctx", "halves"),
    [
        ("A man is on a roof. he", ("A man is on a roof.", "he")),
        ("She bends. She lifts. the lady", ("She bends. She lifts.", "the lady")),
        ("How to sew. Cut it. Fold it.", ("How to sew. Cut it. Fold it.", "")),
        ("no sentence yet", ("no sentence yet", "")),
        (". a man", (".", "a man")),
    ],
)
def test_split_context(ctx: str, halves: tuple[str, str]) -> None:
    assert split_context(ctx) == halves


@pytest.fixture(autouse=True)
def few_on_purpose(tmp_path: Path) -> None:
    """The folders of these tests hold a few items on purpose."""
    (tmp_path / "SUBSET").touch()


def write(path: Path, rows: Iterable[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


ARC = {
    "id": "x",
    "question": {"stem": "Q?", "choices": [{"text": "a", "label": "1"}, {"text": "b", "label": "2"}]},
    "answerKey": "2",
}
HELLASWAG = {"activity_label": "Sewing", "ctx": "A. he", "endings": ["a", "b", "c", "d"], "label": 3}
WINOGRANDE = {"sentence": "a _ b", "option1": "x", "option2": "y", "answer": "1"}
BOOLQ = {"question": "is it", "passage": "It is.", "answer": True}
PIQA = {"goal": "g", "sol1": "a", "sol2": "b"}
OPENBOOKQA = "ID\tQuestion Stem\tChoices\tComplete Question\tAnswer Key"
LAMBADA = {"context": "They came to the", "continuation": "sea"}
COPA = {"query": "It rained, therefore", "choices": ["he got wet.", "he sang."], "gold": 0}
COPA_OFFICIAL = {"premise": "It rained.", "choice1": "He got wet.", "choice2": "He sang.", "question": "effect"}


def test_official_variants(tmp_path: Path) -> None:
    write(tmp_path / "ARC-V1-Feb2018-2" / "ARC-Easy" / "ARC-Easy-Test.jsonl", [ARC])
    assert read_local("allenai/ai2_arc", "ARC-Easy", tmp_path)["test"][0]["choices"]["label"] == ["1", "2"]
    halves = {"ctx_a": "First part", "ctx_b": "then", "ctx": "First part then"}
    write(tmp_path / "hellaswag_val.jsonl", [HELLASWAG | halves])
    document = read_local("Rowan/hellaswag", None, tmp_path)["validation"][0]
    assert (document["ctx_a"], document["ctx_b"]) == ("First part", "then")
    write(tmp_path / "BoolQ" / "val.jsonl", [{"question": "q", "passage": "T -- p", "label": False, "idx": 0}])
    assert read_local("aps/super_glue", "boolq", tmp_path)["validation"][0]["label"] == 0
    write(tmp_path / "boolq" / "dev.jsonl", [BOOLQ | {"title": "T"}])
    assert read_local("aps/super_glue", "boolq", tmp_path)["validation"][0]["passage"] == "T -- It is."
    plain = write(tmp_path / "x.jsonl", [WINOGRANDE]).read_bytes()
    (tmp_path / "winogrande").mkdir()
    (tmp_path / "winogrande" / "dev.jsonl.zst").write_bytes(zstandard.compress(plain))
    assert read_local("winogrande", "winogrande_xl", tmp_path)["validation"] == [WINOGRANDE]


BROKEN = [
    ("ai2_arc", "ARC-Easy", "arc/ARC-Easy-Test.jsonl", ARC | {"answerKey": "C"}, "one of the labels 1, 2"),
    ("ai2_arc", "ARC-Easy", "arc/ARC-Easy-Test.jsonl", ARC | {"question": "Q?"}, "`stem` and `choices`"),
    ("hellaswag", None, "hellaswag/hellaswag_val.jsonl", HELLASWAG | {"label": 4}, "from 0 to 3"),
    ("hellaswag", None, "hellaswag/hellaswag_val.jsonl", HELLASWAG | {"label": ""}, "from 0 to 3"),
    ("hellaswag", None, "hellaswag/hellaswag_val.jsonl", HELLASWAG | {"endings": ["a"]}, "four endings"),
    (
        "hellaswag",
        None,
        "hellaswag/hellaswag_val.jsonl",
        HELLASWAG | {"endings": list("abc"), "label": 2},
        "four endings",
    ),
    ("hellaswag", None, "hellaswag/hellaswag_val.jsonl", HELLASWAG | {"endings": list("abcde")}, "four endings"),
    ("winogrande", None, "winogrande/dev.jsonl", WINOGRANDE | {"answer": ""}, "the test file has no answers"),
    ("winogrande", None, "winogrande/dev.jsonl", WINOGRANDE | {"sentence": "a b"}, "with the gap"),
    ("winogrande", None, "winogrande/dev.jsonl", {"sentence": "a _ b", "answer": "1"}, "a field `option1`"),
    ("super_glue", "boolq", "boolq/dev.jsonl", BOOLQ | {"answer": "yes"}, "true or false"),
    ("piqa", None, "piqa/valid.jsonl", PIQA | {"label": 2}, "from 0 to 1"),
    ("mmlu", "anatomy", "mmlu/test/anatomy_test.csv", "Q?,a,b,c,A", "6 columns"),
    ("mmlu", "anatomy", "mmlu/test/anatomy_test.csv", "Q?,a,b,c,d,E", "A, B, C or D"),
    ("openbookqa", "main", "openbookqa/test.tsv", "1\tWhy?\t(A) a (B) b\tC", "5 columns"),
    ("openbookqa", "main", "openbookqa/test.tsv", "1\tWhy?\t(A) a (B) b\tWhy?\tC", "one of the labels A, B"),
    ("openbookqa", "main", "openbookqa/test.tsv", "1\tWhy?\t(A) a\tWhy?\tA", "at least two choices"),
    ("lambada_openai", None, "lambada/lambada_openai.jsonl", {"text": "word"}, "a text of several words"),
    ("lambada_openai", None, "lambada/lambada_openai.jsonl", {"context": "a b"}, "a field `continuation`"),
    ("super_glue", "copa", "copa/copa_val.jsonl", COPA | {"query": "It rained"}, "`, because` or `, therefore`"),
    ("super_glue", "copa", "copa/copa_val.jsonl", COPA | {"choices": ["one"]}, "two choices"),
    ("super_glue", "copa", "copa/copa_val.jsonl", COPA | {"gold": 2}, "from 0 to 1"),
    (
        "super_glue",
        "copa",
        "copa/copa_val.jsonl",
        {**dict.fromkeys(["premise", "choice1", "choice2", "question"], "x")},
        "cause or effect",
    ),
    ("super_glue", "copa", "copa/copa_val.jsonl", COPA | {"choices": ["he got wet.", ""]}, "`choices`: '', an empty"),
    ("super_glue", "copa", "copa/copa_val.jsonl", COPA_OFFICIAL | {"choice2": " "}, "`choice2`: ' ', an empty choice"),
    ("hellaswag", None, "hellaswag/hellaswag_val.jsonl", HELLASWAG | {"endings": ["a", "b", "", "d"]}, "`endings`: ''"),
    ("winogrande", None, "winogrande/dev.jsonl", WINOGRANDE | {"option1": ""}, "`option1`: ''"),
    ("piqa", None, "piqa/valid.jsonl", PIQA | {"sol2": "", "label": 0}, "`sol2`: ''"),
    ("openbookqa", "main", "openbookqa/test.tsv", "1\tWhy?\t(A)  (B) b\tWhy?\tB", "`Choices`: ''"),
    ("winogrande", None, "winogrande/dev.jsonl", '{"sentence": ', "one JSON object a line"),
    ("winogrande", None, "winogrande/dev.jsonl", "[1]", "one JSON object a line"),
]
GOOD = {"ai2_arc": ARC, "hellaswag": HELLASWAG, "winogrande": WINOGRANDE, "super_glue boolq": BOOLQ}
GOOD |= {"piqa": PIQA | {"label": 0}, "mmlu": "Q?,a,b,c,d,A", "openbookqa": OPENBOOKQA, "lambada_openai": LAMBADA}
GOOD |= {"super_glue copa": COPA}


@pytest.mark.parametrize(("dataset", "subset", "name", "row", "expected"), BROKEN)
def test_broken_rows_name_file_and_line(
    tmp_path: Path, dataset: str, subset: str | None, name: str, row: object, expected: str
) -> None:
    good = GOOD.get(dataset) or GOOD[f"{dataset} {subset}"]
    path = write(tmp_path / name, [good])
    assert read_local(dataset, subset, tmp_path)
    write(path, [good, row])
    with pytest.raises(UserError) as caught:
        read_local(dataset, subset, tmp_path)
    assert str(path) in str(caught.value)
    assert "line 2" in str(caught.value)
    assert expected in str(caught.value)


def test_labels_of_piqa(tmp_path: Path) -> None:
    write(tmp_path / "piqa" / "valid.jsonl", [PIQA, PIQA])
    labels = write(tmp_path / "piqa" / "valid-labels.lst", ["0", "1"])
    assert [document["label"] for document in read_local("baber/piqa", None, tmp_path)["validation"]] == [0, 1]
    write(labels, ["0"])
    with pytest.raises(UserError, match="1 labels"):
        read_local("baber/piqa", None, tmp_path)
    write(labels, ["0", "2"])
    with pytest.raises(UserError, match="line 2"):
        read_local("baber/piqa", None, tmp_path)


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "winogrande" / "dev.jsonl.gz"
    path.parent.mkdir()
    whole = gzip.compress("".join(json.dumps(WINOGRANDE | {"qID": str(n)}) + "\n" for n in range(200)).encode())
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        read_local("winogrande", None, tmp_path)
    path.write_bytes(gzip.compress(b'{"sentence": "\xff"}'))
    with pytest.raises(UserError, match="damaged"):
        read_local("winogrande", None, tmp_path)


def test_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"hellaswag_val\.jsonl"):
        read_local("Rowan/hellaswag", None, tmp_path)
    with pytest.raises(UserError, match="no reader"):
        read_local("allenai/openbookqa", "additional", tmp_path)
    with pytest.raises(UserError, match="no reader"):
        read_local("EleutherAI/lambada_openai", "de", tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        data_fingerprints(["piqa"], tmp_path / "nowhere")


def test_fingerprints_follow_content_not_place(tmp_path: Path) -> None:
    for place in ("one", "two"):
        write(tmp_path / place / "boolq" / "dev.jsonl", [BOOLQ])
    assert data_fingerprints(["boolq"], tmp_path / "one") == data_fingerprints(["boolq"], tmp_path / "two")
    write(tmp_path / "two" / "boolq" / "dev.jsonl", [BOOLQ | {"answer": False}])
    assert data_fingerprints(["boolq"], tmp_path / "one") != data_fingerprints(["boolq"], tmp_path / "two")
    assert data_fingerprints(["piqa"], tmp_path / "one") == data_fingerprints(["piqa"], tmp_path / "two")


def test_another_number_of_items_than_was_published(bench: Path, tmp_path: Path) -> None:
    (tmp_path / "SUBSET").unlink()
    lines = gzip.decompress((bench / "winogrande" / "dev.jsonl.gz").read_bytes()).decode().splitlines()
    assert len(lines) == 1267
    path = write(tmp_path / "winogrande" / "dev.jsonl", lines[:-1])
    with pytest.raises(UserError, match=r"1266 items[\s\S]*1267 items[\s\S]*evaluation\.limit") as caught:
        read_local("winogrande", "winogrande_xl", tmp_path)
    assert str(path) in str(caught.value)
    (tmp_path / "SUBSET").touch()
    assert len(read_local("winogrande", "winogrande_xl", tmp_path)["validation"]) == 1266
    (tmp_path / "SUBSET").unlink()
    write(path, lines)
    assert len(read_local("winogrande", "winogrande_xl", tmp_path)["validation"]) == 1267
    write(tmp_path / "mmlu" / "test" / "anatomy_test.csv", ["Q?,a,b,c,d,A"] * 134)
    with pytest.raises(UserError, match=r"134 items[\s\S]*135 items"):
        read_local("cais/mmlu", "anatomy", tmp_path)


def test_a_subset_is_of_one_benchmark_where_it_says_so_beside_its_files(tmp_path: Path) -> None:
    (tmp_path / "SUBSET").unlink()
    write(tmp_path / "winogrande" / "dev.jsonl", [WINOGRANDE])
    write(tmp_path / "boolq" / "dev.jsonl", [BOOLQ])
    write(tmp_path / "mmlu" / "test" / "anatomy_test.csv", ["Q?,a,b,c,d,A"])
    (tmp_path / "winogrande" / "SUBSET").touch()
    assert len(read_local("winogrande", "winogrande_xl", tmp_path)["validation"]) == 1
    with pytest.raises(UserError, match=r"1 items[\s\S]*3270 items") as caught:
        read_local("aps/super_glue", "boolq", tmp_path)
    assert f"named SUBSET into {tmp_path / 'boolq'}" in str(caught.value)
    (tmp_path / "mmlu" / "SUBSET").touch()
    assert len(read_local("cais/mmlu", "anatomy", tmp_path)["test"]) == 1
    (tmp_path.parent / "SUBSET").touch()  # outside of the folder it says nothing
    with pytest.raises(UserError, match="3270 items"):
        read_local("aps/super_glue", "boolq", tmp_path)


def test_examples_are_whole_in_a_subset_too(tmp_path: Path) -> None:
    write(tmp_path / "mmlu" / "test" / "anatomy_test.csv", ["Q?,a,b,c,d,A"] * 3)
    write(tmp_path / "mmlu" / "dev" / "anatomy_dev.csv", ["Q?,a,b,c,d,A"] * 4)
    with pytest.raises(UserError, match=r"anatomy_dev\.csv[\s\S]*4 items[\s\S]*5 items") as caught:
        read_local("cais/mmlu", "anatomy", tmp_path)
    assert "SUBSET" not in str(caught.value)
    write(tmp_path / "mmlu" / "dev" / "anatomy_dev.csv", ["Q?,a,b,c,d,A"] * 5)
    splits = read_local("cais/mmlu", "anatomy", tmp_path)
    assert {split: len(documents) for split, documents in splits.items()} == {"test": 3, "dev": 5}


EXAMPLES = [
    ("allenai/ai2_arc", "ARC-Easy", "arc_easy", 2251),
    ("allenai/ai2_arc", "ARC-Challenge", "arc_challenge", 1119),
    ("allenai/openbookqa", "main", "openbookqa", 4957),
]


@pytest.mark.parametrize(("dataset", "subset", "task", "count"), EXAMPLES)
def test_examples_of_a_training_split_are_read_and_counted_only_where_asked_for(
    bench: Path, tmp_path: Path, dataset: str, subset: str, task: str, count: int
) -> None:
    assert list(read_local(dataset, subset, bench)) == ["test"]
    assert len(read_local(dataset, subset, bench, examples=True)["train"]) == count
    for file in sorted(bench.glob("*/*")):
        if "test" in file.name.lower() and (subset in file.name or task in file.parts):
            (tmp_path / file.parent.name).mkdir(exist_ok=True)
            (tmp_path / file.parent.name / file.name).symlink_to(file)
    without = data_fingerprints([task], tmp_path)
    with pytest.raises(UserError, match=r"file is missing[\s\S]*[Tt]rain"):
        read_local(dataset, subset, tmp_path, examples=True)
    (folder,) = {path.parent for path in tmp_path.glob("*/*")}
    name = "train.jsonl" if task == "openbookqa" else f"{subset}-Train.jsonl"
    write(folder / name, [ARC])
    assert data_fingerprints([task, f"{task}@0"], tmp_path) == without
    assert data_fingerprints([f"{task}@5"], tmp_path) != without
    with pytest.raises(UserError, match=f"1 items[\\s\\S]*{count} items"):
        read_local(dataset, subset, tmp_path, examples=True)


def test_variants_of_the_other_benchmarks(bench: Path, tmp_path: Path) -> None:
    first = read_local("allenai/openbookqa", "main", bench)["test"][1]
    assert first["question_stem"] == "There is most likely going to be fog around:"
    assert first["choices"] == {"text": ["a marsh", "a tundra", "the plains", "a desert"], "label": list("ABCD")}
    assert first["answerKey"] == "A"
    write(tmp_path / "Main" / "test.jsonl", [ARC])
    (document,) = read_local("allenai/openbookqa", "main", tmp_path)["test"]
    assert (document["question_stem"], document["answerKey"]) == ("Q?", "2")
    write(tmp_path / "COPA" / "val.jsonl", [COPA_OFFICIAL | {"label": 0, "idx": 3}])
    assert read_local("aps/super_glue", "copa", tmp_path)["validation"] == [COPA_OFFICIAL | {"label": 0}]
    write(tmp_path / "copa" / "copa_val.jsonl", [COPA])
    other = {"premise": "It rained.", "choice1": "he got wet.", "choice2": "he sang.", "question": "effect", "label": 0}
    assert read_local("aps/super_glue", "copa", tmp_path)["validation"] == [other]
    write(tmp_path / "lambada" / "test.jsonl", [{"text": "They came to the sea"}, LAMBADA])
    texts = [document["text"] for document in read_local("EleutherAI/lambada_openai", None, tmp_path)["test"]]
    assert texts == ["They came to the sea"] * 2


def test_wikitext_articles(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "general" / "wikitext2_valid.txt.gz"
    (tmp_path / "SUBSET").unlink()
    (tmp_path / "wikitext2_valid.txt.gz").symlink_to(source)
    splits = read_local("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1", tmp_path)
    pages = [document["page"] for document in splits["validation"]]
    assert len(pages) == 60
    assert pages[0].startswith(" \n = Homarus gammarus = \n") or pages[0].startswith(" = Homarus gammarus = \n")
    whole = gzip.decompress(source.read_bytes()).decode()
    assert "".join(pages) in (whole, whole.removeprefix(" \n"))
    write(
        tmp_path / "wikitext" / "wiki.test.raw", [" = One = ", "", " text ", " = = Two = = ", " more ", " = Three = "]
    )
    (tmp_path / "SUBSET").touch()
    splits = read_local("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1", tmp_path)
    assert [document["page"] for document in splits["test"]] == [
        " = One = \n\n text \n = = Two = = \n more \n",
        " = Three = \n",
    ]


def test_what_is_made_of_the_validation_text_says_so(tmp_path: Path) -> None:
    write(tmp_path / "wiki.valid.raw", [" = One = "])
    (other,) = data_fingerprints(["wikitext"], tmp_path).values()
    assert other.endswith(" (validation)")
    write(tmp_path / "wiki.test.raw", [" = Two = "])
    (whole,) = data_fingerprints(["wikitext"], tmp_path).values()
    assert whole.isalnum()
    (tmp_path / "wiki.valid.raw").unlink()
    assert list(read_local("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1", tmp_path)) == ["test"]
    (tmp_path / "wiki.test.raw").unlink()
    with pytest.raises(UserError, match=r"file is missing[\s\S]*wiki\.test\.raw"):
        read_local("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1", tmp_path)
