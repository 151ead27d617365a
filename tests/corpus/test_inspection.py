"""What an inspection says of a corpus is what stands in its tables, and what the corpus was made of."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from known_corpus import CHEATS, COPIES, LEAKS, NEAR_COPIES, PASSAGE, SHORT, SITES, KnownCorpus, write_known_corpus
from onward.artifact import building_place
from onward.cli import app
from onward.corpus import sorting
from onward.corpus.inspected import Inspection, Spread
from onward.corpus.inspection import can_be_inspected, find_corpora, find_corpus, inspect_corpus
from onward.corpus.store import open_corpus
from onward.errors import UserError


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> KnownCorpus:
    return write_known_corpus(tmp_path_factory.mktemp("known"), repository)


@pytest.fixture(scope="module")
def found(known: KnownCorpus) -> Inspection:
    return inspect_corpus(known.folder, samples=2)


def documents(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    tables = [parquet.read_table(path) for path in sorted(folder.glob("documents-*"))]
    assert len(tables) > 1, "several blocks"
    return {name: np.concatenate([t[name].to_numpy() for t in tables]) for name in tables[0].column_names}


def assert_spread(spread: Spread, values: np.ndarray[Any, Any], tokens: np.ndarray[Any, Any]) -> None:
    edges = [*spread.lower, np.inf]
    assert spread.documents == tuple(np.histogram(values, edges)[0])
    assert spread.tokens == tuple(np.histogram(values, edges, weights=tokens)[0])
    assert sum(spread.documents) == len(values)
    assert spread.documents[0] > 0 < spread.documents[-1]
    for share, value in spread.quantiles:
        assert value == pytest.approx(np.quantile(values, share, method="inverted_cdf"), abs=0.011)


def test_lengths_and_ratios_are_those_of_the_documents(known: KnownCorpus, found: Inspection) -> None:
    rows = documents(known.folder)
    assert_spread(found.lengths, rows["length"], rows["length"])
    ratios = rows["bytes"] / rows["length"]
    assert_spread(found.bytes_per_token, ratios, rows["length"])
    json_form = found.as_json()
    assert json_form["bytes_per_kept_token"] == rows["bytes"].sum() / rows["length"].sum()


def test_sources_and_domains_add_up(known: KnownCorpus, found: Inspection) -> None:
    rows = documents(known.folder)
    assert found.sources.distinct == 2
    for origin, path in zip(found.sources.rows, (known.addresses, known.plain), strict=True):
        mine = rows["source"] == path
        sums = (int(mine.sum()), int(rows["bytes"][mine].sum()), int(rows["length"][mine].sum()))
        assert (origin.name, origin.documents, origin.bytes, origin.tokens) == (path, *sums)
    assert found.domains is not None
    assert {row.name for row in found.domains.rows} == {f"site{n}.org" for n in range(SITES)}
    assert sum(row.tokens for row in found.domains.rows) == found.sources.rows[0].tokens


def test_without_web_addresses_there_are_no_domains(tmp_path: Path, repository: Path) -> None:
    assert inspect_corpus(write_known_corpus(tmp_path, repository, examples=6).folder).domains is not None
    folder = tmp_path / "plain"
    shutil.copytree(next((tmp_path / "cache/corpora").glob("[!.]*")), folder)
    for path in folder.glob("documents-*"):
        table = parquet.read_table(path)
        ids = [name.removeprefix("https://") for name in table["id"].to_pylist()]
        parquet.write_table(table.set_column(1, "id", [ids]), path)
    assert inspect_corpus(folder).domains is None


def test_samples_are_beginnings_of_kept_documents_chosen_by_the_seed(known: KnownCorpus, found: Inspection) -> None:
    kept = set(documents(known.folder)["id"])
    for sample in inspect_corpus(known.folder, samples=20).kept:
        assert sample.id in kept
        assert sample.excerpt.endswith("…")
        assert known.texts[sample.id].startswith(sample.excerpt[:-1])
        assert len(sample.excerpt) == 201
        assert sample.bytes == len(known.texts[sample.id].encode())
    assert inspect_corpus(known.folder, samples=2) == found
    others = {sample.id for seed in range(5) for sample in inspect_corpus(known.folder, 2, seed).kept}
    assert len(others) > 4


def test_no_samples_are_shown_where_none_are_wanted(known: KnownCorpus) -> None:
    found = inspect_corpus(known.folder, samples=0)
    assert found.kept == ()
    assert all(rule.examples == () for rule in found.dropped)
    assert found.near.largest[0].removed == NEAR_COPIES
    assert found.near.largest[0].examples == ()
    assert len(inspect_corpus(known.folder, samples=1000).kept) == found.ledger.kept.documents


def test_every_rule_shows_what_it_dropped(known: KnownCorpus, found: Inspection) -> None:
    counts = {rule.rule: rule.documents for rule in found.dropped}
    assert counts == {**{rule: c.documents for rule, c in found.ledger.dropped.items()}, "contaminated": CHEATS}
    assert counts["gopher quality: too few words"] == SHORT
    (short,) = [rule for rule in found.dropped if rule.documents == SHORT]
    assert len(short.examples) == 2
    for example in short.examples:
        assert example.id.startswith("short-")
        assert example.excerpt == known.texts[example.id]
        assert example.source == known.plain


def test_rules_that_dropped_more_than_is_listed_say_so(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sorting, "LISTED_ROWS", 3)
    found = inspect_corpus(write_known_corpus(tmp_path, repository, examples=10).folder, samples=9)
    (short,) = [rule for rule in found.dropped if rule.documents == SHORT]
    assert short.listed == len(short.examples) == 3
    assert (found.exact.documents, found.exact.listed) == (COPIES, 3)
    # A near-duplicate is a judgement, so every one can be looked up.
    assert found.near.documents == found.near.listed == NEAR_COPIES + LEAKS > 3
    assert sum(cluster.removed for cluster in found.near.largest) == found.near.listed


def test_clusters_name_what_stayed_and_what_was_removed(known: KnownCorpus, found: Inspection) -> None:
    (copies,) = found.exact.largest
    assert (found.exact.documents, found.exact.clusters, copies.removed) == (COPIES, 1, COPIES)
    assert copies.id == "https://www.site0.org/page/3"
    assert [removed.id for removed in copies.examples] == ["copy-0", "copy-1"]
    assert {removed.bands for removed in copies.examples} == {0}
    near, leak = found.near.largest
    assert (found.near.documents, found.near.clusters, found.near.elsewhere) == (NEAR_COPIES + LEAKS, 2, 0)
    assert (near.id, near.removed, near.is_held_out) == ("https://www.site2.org/page/5", NEAR_COPIES, False)
    assert (leak.id, leak.removed, leak.is_held_out) == ("held-2", LEAKS, True)
    for cluster in (near, leak):
        assert known.texts[cluster.id].startswith(cluster.excerpt.removesuffix("…"))
        assert all(removed.bands > 5 for removed in cluster.examples)


def test_contamination_is_told_task_by_task(found: Inspection) -> None:
    assert found.contamination is not None
    quiz, riddles = found.contamination
    assert (quiz.task, quiz.items, quiz.standing, quiz.documents) == ("quiz", 1, 0, CHEATS)
    assert {passage.id for passage in quiz.passages} == {f"cheat-{n}" for n in range(CHEATS)}
    assert all(PASSAGE in passage.excerpt and passage.action == "drop" for passage in quiz.passages)
    assert (riddles.task, riddles.items, riddles.passages) == ("riddles", 0, ())


def test_where_nothing_was_looked_for_nothing_is_told(known: KnownCorpus, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    shutil.copytree(known.folder, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["made_from"] = {k: v for k, v in manifest["made_from"].items() if not k.startswith("items.")}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert inspect_corpus(folder).contamination is None


def test_packing_is_that_of_the_sequences(known: KnownCorpus, found: Inspection) -> None:
    opened = open_corpus(known.folder)
    pieces = np.diff(opened.packing.sequence_start)
    assert_spread(found.packing.pieces_per_sequence, pieces, pieces)
    assert found.packing.pieces == pieces.sum()
    assert found.packing.cut_documents == (documents(known.folder)["length"] > 64).sum()
    assert found.packing.mode == "best_fit"


def test_measures_count_what_the_rules_speak_against(found: Inspection) -> None:
    measures = {measure.rule: measure for measure in found.measures}
    short = measures["gopher quality: too few words"]
    assert (short.threshold, short.is_maximum, short.beyond) == (50, False, SHORT)
    longest = measures["gopher quality: long words"]
    assert (longest.is_maximum, longest.beyond) == (True, 0)
    assert {sum(measure.counts) for measure in found.measures} == {found.ledger.read.documents - 5}


def test_the_form_for_machines_is_plain(found: Inspection) -> None:
    content = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert content["ledger"]["kept"]["documents"] == found.ledger.kept.documents
    assert content["near"]["largest"][0]["id"] == "https://www.site2.org/page/5"
    assert content["measures"][0]["beyond"] == found.measures[0].beyond
    assert content["folder"] == found.folder


def test_corpora_are_found_by_folder_run_and_recipe(known: KnownCorpus, tmp_path: Path) -> None:
    assert find_corpora(str(known.folder), tmp_path) == {"corpus": known.folder}
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "artifacts.json").write_text(json.dumps({"corpora": {"domain": str(known.folder), "general": None}}))
    assert find_corpora(str(run), tmp_path) == {"domain": known.folder}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "{name: mine, model: {base: onward/tiny}, corpus: {sources: [{path: x}]}, "
        "training: {forgetting: {replay: null}}}"
    )
    assert find_corpora(str(recipe), tmp_path / "runs") == {"domain": known.folder}


def test_what_is_no_corpus_is_named(known: KnownCorpus, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no prepared corpus"):
        find_corpora(str(tmp_path), tmp_path)
    with pytest.raises(UserError, match="there is no such folder"):
        find_corpora(str(tmp_path / "absent"), tmp_path)
    building_place(tmp_path / "half").mkdir()
    with pytest.raises(UserError, match="still being prepared"):
        find_corpora(str(tmp_path / "half"), tmp_path)
    older = tmp_path / "older"
    shutil.copytree(known.folder, older)
    assert can_be_inspected(older)
    (older / "tokens-00001.npy").unlink()
    assert not can_be_inspected(older)
    with pytest.raises(UserError, match="files of this corpus are missing") as caught:
        inspect_corpus(older)
    assert caught.value.got == "tokens-00001.npy"
    manifest = json.loads((older / "manifest.json").read_text())
    del manifest["files"]["facts.json"]
    (older / "manifest.json").write_text(json.dumps(manifest))
    assert not can_be_inspected(older)
    with pytest.raises(UserError, match="by an older version"):
        inspect_corpus(older)
    (older / "manifest.json").unlink()
    with pytest.raises(UserError, match="not a prepared corpus"):
        inspect_corpus(older)


def test_the_commands_say_what_the_functions_find(known: KnownCorpus, found: Inspection, tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["inspect", str(known.folder), "--samples", "2", "--json"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout) == {"corpus": json.loads(json.dumps(found.as_json()))}
    shown = CliRunner().invoke(app, ["inspect", str(known.folder), "--samples", "1"])
    assert "near-duplicates: 8 documents removed" in shown.stdout
    assert shown.stdout.count("dropped: gopher quality: too few words, 7 documents") == 1
    assert CliRunner().invoke(app, ["inspect", str(tmp_path)]).exit_code == 2
    text = tmp_path / "text.jsonl"
    exported = CliRunner().invoke(app, ["export", str(known.folder), "--to", str(text), "--format", "jsonl"])
    assert exported.exit_code == 0, exported.output
    rows = [json.loads(line) for line in text.read_text(encoding="utf-8").splitlines()]
    assert {row["id"]: row["text"] for row in rows} == {
        name: known.texts[name] for name in documents(known.folder)["id"]
    }
    assert f"{len(rows)} documents in {text}" in exported.stdout


def test_a_run_with_two_corpora_is_not_exported_without_a_choice(known: KnownCorpus, tmp_path: Path) -> None:
    content = {"corpora": {"domain": str(known.folder), "general": str(known.folder)}}
    (tmp_path / "artifacts.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="several corpora") as caught:
        find_corpus(str(tmp_path), tmp_path)
    assert f"general: {known.folder}" in str(caught.value)
    assert find_corpus(str(known.folder), tmp_path) == known.folder
