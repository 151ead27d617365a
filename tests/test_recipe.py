from fractions import Fraction
from pathlib import Path

import pytest

from onward.errors import UserError, UserErrors
from onward.recipe import (
    Forgetting,
    format_seconds,
    format_share,
    format_tokens,
    load_recipe,
    recipe_from_mapping,
    remedy_words,
    replay_words,
)
from onward.recipe.quantities import parse_seconds, parse_share, parse_tokens
from onward.recipe.starter import write_starter

MINIMAL = {"name": "x", "model": {"base": "onward/tiny"}, "corpus": {"sources": [{"path": "a"}]}}


def minimal(**sections: object) -> dict[str, object]:
    return MINIMAL | {"training": {"forgetting": {"replay": None}}} | sections


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("400M", 400_000_000), ("1.5B", 1_500_000_000), ("128k", 128_000), (655360, 655_360), ("1_000", 1000)],
)
def test_tokens_are_read_exactly_and_written_back(text: object, tokens: int) -> None:
    assert parse_tokens(text) == tokens
    assert parse_tokens(format_tokens(tokens)) == tokens


@pytest.mark.parametrize("text", ["4xM", "1.5", "-3M", "M", True, None, "400 Mb"])
def test_what_is_no_number_of_tokens_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match=r"token|quantity"):
        parse_tokens(text)


def test_text_by_name_is_what_training_reads_beside_the_domain() -> None:
    text = {"sources": [{"path": "w"}], "quality": "none"}
    forgetting = {"replay": {"web": "2%", "self": "1%"}, "ewc": {"text": "books"}}
    recipe = recipe_from_mapping(
        MINIMAL | {"training": {"forgetting": forgetting}, "corpora": {"web": text, "books": text, "unread": text}}
    )
    assert list(recipe.texts()) == ["domain", "web", "self", "books"]
    assert recipe.texts()["self"].self_replay is not None
    assert [*recipe_from_mapping(minimal(general=text)).texts()] == ["domain", "general"]
    assert replay_words(recipe.training.forgetting.replayed) == "2% web and 1% self"
    assert replay_words({"general": Fraction(1, 20)}) == "5% general text"
    assert replay_words({}) == "none"


def test_the_seed_of_training_is_the_recipes_unless_it_has_one() -> None:
    assert recipe_from_mapping(minimal(seed=3)).training_seed == 3
    own = {"forgetting": {"replay": None}, "seed": 0}
    assert recipe_from_mapping(minimal(seed=3, training=own)).training_seed == 0


def test_what_is_wrong_with_replayed_text_is_said_at_once() -> None:
    with pytest.raises(UserErrors) as caught:
        recipe_from_mapping(MINIMAL | {"training": {"text": "general", "forgetting": {"replay": {"wbe": "5%"}}}})
    assert [(problem.where, problem.what, problem.todo) for problem in caught.value.problems] == [
        ("recipe, training.forgetting.replay.wbe", "there is no corpus `wbe`", "there are: self"),
        ("recipe, training.text", "there is no `general` text", "add it, or write `training.text: domain`"),
        (
            "recipe, training.forgetting.replay",
            "`training.text: general` trains on general text alone",
            "write `replay: null`",
        ),
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("domain", "`domain` means something else already"),
        ("sampled", "`sampled` means something else already"),
        ("web text", "`web text` is no name of a corpus: letters, digits"),
        ("a.b", "`a.b` is no name of a corpus"),
    ],
)
def test_names_of_corpora_can_be_written_everywhere(name: str, message: str) -> None:
    with pytest.raises(UserErrors, match=message):
        recipe_from_mapping(minimal(corpora={name: {"sources": [{"path": "w"}]}}))


def test_a_share_is_exact_and_a_forgotten_percent_sign_is_noticed() -> None:
    assert parse_share("5%") == Fraction(1, 20) == parse_share("0.05") == parse_share(0.05)
    assert parse_share(format_share(Fraction(1, 200))) == Fraction(1, 200)
    with pytest.raises(ValueError, match="did you mean 5%"):
        parse_share("5")


def test_durations() -> None:
    assert parse_seconds("2h") == 7200
    assert [format_seconds(s) for s in (8, 200, 7500)] == ["8 s", "3 min 20 s", "2 h 05 min"]


def test_every_problem_is_reported_at_once_with_its_key() -> None:
    wrong = minimal(training={"stages": ["4xM"], "optimizer": {"learning_rate": -1}}, evaluation={"limt": 3})
    with pytest.raises(UserErrors) as caught:
        recipe_from_mapping(wrong, "r.yaml")
    where = {problem.where for problem in caught.value.problems}
    assert {"r.yaml, training.stages.0", "r.yaml, training.optimizer.learning_rate", "r.yaml, evaluation.limt"} <= where
    assert "did you mean `limit`?" in str(caught.value)


def test_an_unknown_key_inside_a_list_names_the_nearest() -> None:
    with pytest.raises(UserErrors, match="did you mean `path`"):
        recipe_from_mapping(minimal(corpus={"sources": [{"pth": "a"}]}))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"training": {"stages": ["2M", "1M"], "forgetting": {"replay": None}}}, "cumulative"),
        ({"training": {"batch_tokens": 100, "forgetting": {"replay": None}}}, "holds no whole sequence"),
        ({"training": {"stages": ["200k", "250k"], "forgetting": {"replay": None}}}, "end at the same step"),
        ({"corpus": {"sources": [{"path": "a"}], "held_out": {"share": "100%"}}}, "nothing to train on"),
        (
            {"training": {"schedule": {"kind": "wsd", "warmup": "90%"}, "forgetting": {"replay": None}}},
            "more than the whole",
        ),
        ({"training": {"stages": ["1k"], "forgetting": {"replay": None}}}, "shorter than a step"),
        ({"training": {"forgetting": {"replay": "100%"}}, "general": {"sources": [{"path": "b"}]}}, "below 100%"),
        ({"training": {}}, "no `general` text to replay"),
        ({"corpus": {"self_replay": {"tokens": "1k"}}}, "only text to replay can be sampled"),
        ({"corpus": {"sources": []}}, "no documents"),
        ({"corpus": {"sources": [{"path": "a"}], "quality": "fineweeb"}}, "unknown preset"),
    ],
)
def test_contradictions_are_refused(sections: dict[str, object], message: str) -> None:
    with pytest.raises(UserErrors, match=message):
        recipe_from_mapping(minimal(**sections))


def test_overrides_stand_above_the_file(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("name: x\nmodel: {base: onward/tiny}\ncorpus: {sources: [{path: a}]}\n")
    recipe = load_recipe(path, ["training.forgetting.replay=null", "corpus.sources.0.path=b", "evaluation.limit=7"])
    assert (recipe.corpus.sources[0].path, recipe.evaluation.limit) == ("b", 7)
    with pytest.raises(UserError, match="key=value"):
        load_recipe(path, ["seed"])
    with pytest.raises(UserError, match="no parts"):
        load_recipe(path, ["name.first=1"])


def test_broken_yaml_names_the_line_and_a_missing_file_what_there_is(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("name: x\nmodel: [\n")
    with pytest.raises(UserError, match="line 3"):
        load_recipe(path)
    with pytest.raises(UserError, match="quickstart"):
        load_recipe(tmp_path / "none.yaml")


def test_the_starter_recipe_is_a_valid_recipe_with_every_default(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    write_starter(path, "onward/tiny", ["/text/*.jsonl"], [])
    written = load_recipe(path)
    given = {
        "name": "mine",
        "model": {"base": "onward/tiny"},
        "corpus": {"sources": [{"path": "/text/*.jsonl"}]},
        "general": {"self_replay": {}, "quality": "none", "held_out": {"share": "10%"}},
    }
    assert written == recipe_from_mapping(given)
    write_starter(tmp_path / "short.yaml", "onward/tiny", ["a"], ["b"], context_tokens=1024)
    short = load_recipe(tmp_path / "short.yaml")
    assert short.training.sequence_tokens == 1024
    assert short.general is not None
    assert short.general.sources[0].path == "b"
    with pytest.raises(UserError, match="exists already"):
        write_starter(path, "onward/tiny", ["a"], [])


def problems_of(path: Path, *overrides: str) -> list[UserError]:
    with pytest.raises(UserErrors) as caught:
        load_recipe(path, overrides)
    return caught.value.problems


@pytest.fixture
def valid(tmp_path: Path) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(
        "name: x\nmodel: {base: onward/tiny}\ncorpus: {sources: [{path: a}]}\ntraining: {forgetting: {replay: null}}\n"
    )
    return path


@pytest.mark.parametrize(
    ("override", "what", "expected"),
    [
        ("training.memory=lots", "expected a quantity such as 16GB or auto", None),
        ("training.memory=0", "`memory` cannot have this value", "greater than 0, or auto"),
        ("training.offload=maybe", "unknown value of `offload`", "true, false or auto"),
        ("training.micro_batch_sequences=few", "unknown value of `micro_batch_sequences`", "a whole number or auto"),
        (
            "training.gradient_checkpointing=0",
            "`gradient_checkpointing` cannot have this value",
            "greater than or equal to 1, or auto, none or all",
        ),
    ],
)
def test_a_value_that_may_be_of_several_types_is_one_problem(
    valid: Path, override: str, what: str, expected: str | None
) -> None:
    (problem,) = problems_of(valid, override)
    assert (problem.what, problem.expected) == (what, expected)
    assert problem.where == f"--set {override.partition('=')[0]}"


def test_a_problem_of_an_override_is_said_to_stand_there(valid: Path) -> None:
    found = problems_of(valid, "training.shardin=none", "training.sharding=zero4", "training.stages=[4xM]")
    places = [f"--set training.{name}" for name in ("shardin", "sharding", "stages")]
    assert sorted(str(problem.where) for problem in found) == places
    (short,) = problems_of(valid, "training.batch_tokens=100")
    assert short.where == f"{valid}, training (with --set training.batch_tokens)"
    valid.write_text(valid.read_text().replace("replay: null", "replay: 0%"))
    found = problems_of(valid, "training.precision=fp8")
    places = [f"{valid}, training.forgetting.replay", "--set training.precision"]
    assert sorted(str(problem.where) for problem in found) == sorted(places)


@pytest.mark.parametrize(
    ("override", "got", "said"),
    [
        ("lora=8", "8", "expected {rank: 8}, {} (rank 16), or null"),
        ("lora=true", "True", "expected {rank: 8}, {} (rank 16), or null"),
        ("freeze=half", "'half'", "expected embeddings, a number of blocks, all, or {embeddings: true, blocks: 4}"),
        ("freeze=true", "True", "expected embeddings, a number of blocks, all"),
        ("ewc=much", "'much'", "expected a strength (1.0), or {strength: 1.0, tokens: 200k}, or null"),
        ("kl={strength: 1}", "{'strength': 1}", "expected a number such as 0.1, or null"),
        ("l2_sp={strength: 1}", "{'strength': 1}", "expected a number such as 0.1, or null"),
    ],
)
def test_a_remedy_of_another_form_is_told_what_could_be_written(
    valid: Path, override: str, got: str, said: str
) -> None:
    (problem,) = problems_of(valid, f"training.forgetting.{override}")
    assert problem.what.startswith(said)
    assert (problem.where, problem.got) == (f"--set training.forgetting.{override.partition('=')[0]}", got)


def test_numbers_and_sections_of_remedies_are_read_as_before(valid: Path) -> None:
    general = "general={sources: [{path: g}]}"
    written = ["replay=self", "kl=0.5", "l2_sp='1e-2'", "ewc=2", "freeze=1"]
    forgetting = load_recipe(valid, [general, *(f"training.forgetting.{each}" for each in written)]).training.forgetting
    assert forgetting.ewc is not None
    assert (forgetting.kl, forgetting.l2_sp, forgetting.ewc.strength) == (0.5, 0.01, 2.0)
    lora = load_recipe(valid, ["training.forgetting.lora={}"]).training.forgetting.lora
    assert lora is not None
    assert lora.rank == 16
    (problem,) = problems_of(valid, "training.forgetting.kl=-1")
    assert "greater than or equal to 0" in problem.what
    ewc = load_recipe(valid, [general, "training.forgetting.ewc=1e-3"]).training.forgetting.ewc  # text, in YAML 1.1
    assert ewc is not None
    assert ewc.strength == 0.001


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({}, "none"),
        ({"ewc": 0, "kl": 0.0}, "none"),
        ({"ewc": {"strength": 10, "text": "web"}, "l2_sp": 0.5}, "EWC 10 (200,000 tokens of web), L2-SP 0.5"),
        ({"kl": 1, "freeze": {"embeddings": True, "blocks": 2}}, "KL to the base 1, embeddings and 2 blocks frozen"),
        ({"lora": {}}, "LoRA of rank 16, alpha 32"),
    ],
)
def test_remedies_are_told_in_words(written: dict[str, object], said: str) -> None:
    assert remedy_words(Forgetting.model_validate(written)) == said


@pytest.mark.parametrize("knob", ["kl", "lora={alpha: .inf}", "lora={learning_rate_ratio: .inf}"])
def test_what_has_no_meaning_without_end_is_finite(valid: Path, knob: str) -> None:
    knobs = [f"training.forgetting.{knob}{'' if '=' in knob else '=.inf'}", "general={sources: [{path: g}]}"]
    (problem,) = problems_of(valid, *knobs)
    assert "finite" in problem.what


def test_problems_between_values_stand_alone_each_with_its_key_and_advice(valid: Path) -> None:
    found = problems_of(valid, "training.forgetting.ewc.text=nix", "training.forgetting.replay={web: 5%, self: 5%}")
    assert [(problem.where, problem.got, problem.todo) for problem in found] == [
        ("--set training.forgetting.replay: web", "'5%'", "there are: self"),
        ("--set training.forgetting.ewc.text", "'nix'", "there are: self"),
    ]
    (problem,) = problems_of(valid, "training.forgetting.ewc=1")
    assert problem.what == "there is no `general` text to estimate the Fisher information on"
    assert problem.todo == "add it, or name another: self"
    (problem,) = problems_of(valid, "training.forgetting.ewc=1", "corpora.self={self_replay: {}}")
    assert problem.todo == "add it, or name another: self"
    assert load_recipe(valid, ["training.forgetting.ewc=0"]).training.forgetting.weighed is None, "needs no text"
    found = problems_of(valid, "training.forgetting.replay={general: 5, self: 5}")
    places = [f"--set training.forgetting.replay: {name}" for name in ("general", "self")]
    assert [problem.where for problem in found] == places
    found = problems_of(valid, "training.forgetting.kl=1", "training.forgetting.freeze=all")
    assert [(problem.where, problem.what) for problem in found] == [
        ("--set training.forgetting.freeze", "all is to be frozen: nothing is left to train"),
        ("--set training.forgetting.kl", "kl is measured on replayed text, and there is none"),
    ]


@pytest.mark.parametrize("name", ["cloze", "limit", "resamples"])
@pytest.mark.parametrize("value", ["yes", "no"])
def test_yes_is_no_number(valid: Path, name: str, value: str) -> None:
    (problem,) = problems_of(valid, f"evaluation.{name}={value}")
    assert "expected a number, not yes or no" in str(problem)


def test_the_choices_of_a_knob_are_told_with_the_nearest(valid: Path) -> None:
    (problem,) = problems_of(valid, "training.sharding=zero4")
    assert problem.what == "unknown value of `sharding`"
    assert (problem.got, problem.expected) == ("'zero4'", "auto, none, zero2 or zero3")
    assert problem.todo == "did you mean zero3?"
    (problem,) = problems_of(valid, "training.guard.spike=yes")
    assert (problem.got, problem.expected, problem.todo) == ("True", "skip, rollback or stop", None)


def test_a_proxy_is_known_by_name_and_a_misspelt_one_names_the_nearest() -> None:
    text = {"sources": [{"path": "proxy:fineweb"}]}
    general = recipe_from_mapping(minimal(general=text)).general
    assert general is not None
    assert (general.sources[0].path, general.sources[0].license) == ("proxy:fineweb", "odc-by")
    with pytest.raises(UserErrors, match="there is no proxy `finweb`; did you mean proxy:fineweb"):
        recipe_from_mapping(minimal(general={"sources": [{"path": "proxy:finweb"}]}))
    with pytest.raises(UserErrors, match="there are: fineweb, fineweb-edu, dclm, pile, smollm, slimpajama"):
        recipe_from_mapping(minimal(general={"sources": [{"path": "proxy:"}]}))


@pytest.mark.parametrize(
    ("base", "proxy"),
    [
        ("facebook/MobileLLM-125M", "fineweb"),
        ("HuggingFaceTB/SmolLM2-135M", "smollm"),
        ("EleutherAI/pythia-160m", "pile"),
        ("/models/Qwen3-0.6B-Base/", "fineweb"),
        ("google/gemma-3-270m", "fineweb"),
        ("TinyLlama/TinyLlama_v1.1", "slimpajama"),
        ("onward/tiny", None),
        ("pythia/unknown", None),
    ],
)
def test_the_starter_names_public_text_for_a_known_base(tmp_path: Path, base: str, proxy: str | None) -> None:
    path = tmp_path / "r.yaml"
    write_starter(path, base, ["a"], [])
    text = path.read_text()
    assert (f"#   general: {{sources: [{{path: proxy:{proxy}}}]}}\n" in text) == (proxy is not None)
    assert ("proxy:" in text.split("name:")[0]) == (proxy is not None)
    general = load_recipe(path).general
    assert general is not None
    assert general.self_replay is not None, "samples stay the default"
    write_starter(tmp_path / "given.yaml", base, ["a"], ["b"])
    assert "proxy:" not in (tmp_path / "given.yaml").read_text().split("name:")[0]
