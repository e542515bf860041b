"""bench.yaml: what it may say, and how a mistake is told: file, line, column, what was found, what is allowed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.config import Config, Sources, load, schema
from bench.errors import RequestError
from bench.plan import make_plan
from bench.recipes import RECIPES

Read = Callable[..., Config]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "bench.yaml"


@pytest.fixture
def read(file: Path) -> Read:
    def reading(text: str, overrides: dict[str, Any] | None = None, assignments: Sequence[str] = ()) -> Config:
        file.write_text(text)
        return load(file, overrides or {}, assignments)[0]

    return reading


def test_an_empty_file_and_no_file_give_the_defaults(read: Read) -> None:
    assert read("") == load(None, {}, [])[0] == Config()


@pytest.mark.parametrize(
    ("text", "at", "says"),
    [
        ("seeds: 3\nfolds: all\nseeds: 4\n", "3:1", "key 'seeds' is given twice"),
        ("recipe:\n  lr: 1\n  lr: 2\n", "3:3", "key 'lr' is given twice"),
        ("metods: [a]\n", "1:1", "unknown key 'metods'. Did you mean 'methods'? Known: datasets"),
        ("recipe:\n  epochs: 3\n  lear: 3\n", "3:3", "unknown key 'lear'"),
        ("recipe:\n  epoch: 3\n", "2:3", "unknown key 'epoch'. Did you mean 'epochs'?"),
        ("methods: []\n", "1:10", "the list is empty"),
        ("datasets: []\n", "1:11", "the list is empty"),
        ("seeds: []\n", "1:8", "the list is empty"),
        ("folds: []\n", "1:8", "the list is empty"),
        ("methods:\n  - concat\n  - 3\n", "3:5", "methods.1: Input should be a valid string (found 3)"),
        ("recipe:\n  lr: fast\n", "2:7", "recipe.lr: Input should be a valid number"),
        ("recipe:\n  lr: 0\n", "2:7", "greater than 0 (found 0)"),
        ("recipe:\n  lr: 1e400\n", "2:7", "finite number"),
        ("recipe:\n  epochs: 2.5\n", "2:11", "valid integer"),
        ("recipe: {name: smal}\n", "1:16", "unknown recipe 'smal'; known: published, small"),
        ("recipe: 3\n", "1:9", "found 3"),
        ("execute:\n  slots: 0\n", "2:10", "greater than or equal to 1"),
        ("seeds: 0\n", "1:8", "at least one seed is needed"),
        ("seeds: true\n", "1:8", "expected a number of seeds or a list of seeds"),
        ("seeds: [1, 1]\n", "1:8", "a seed is named twice"),
        ("folds: [0, 0]\n", "1:8", "one is named twice"),
        ("seeds: [0, '0']\n", "1:8", "one is named twice"),
        ("seeds: some\n", "1:8", "expected a number of seeds or a list of seeds, e.g. 3 or 0,1,2"),
        ("folds: some\n", "1:8", "or all"),
        ("- a\n", "1:1", "expected `key: value` lines, found a list"),
        ("methods: [a\n", "2:1", "expected ',' or ']'"),
        ("? [a]\n: 3\n", "1:3", "expected a name as key, found a sequence"),
    ],
)
def test_a_mistake_is_told_with_its_place(read: Read, file: Path, text: str, at: str, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(text)
    first = str(caught.value).splitlines()[0]
    assert first.startswith(f"{file}:{at}: ")
    assert says in str(caught.value)


def test_all_mistakes_are_told_at_once(read: Read) -> None:
    with pytest.raises(RequestError) as caught:
        read("seeds: 0\nfolds: []\nmetods: a\n")
    assert len(str(caught.value).splitlines()) == 3


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no\.yaml: there is no such file; name one with --config"):
        load(tmp_path / "no.yaml", {}, [])


@pytest.mark.parametrize(
    ("written", "value"), [("1e-3", 1e-3), ("1E+3", 1000.0), ("0.5", 0.5), (".5", 0.5), ("2", 2.0), ("1.e-2", 0.01)]
)
def test_numbers_are_what_they_look_like(read: Read, written: str, value: float) -> None:
    assert read(f"recipe:\n  lr: {written}\n").recipe.lr == value


def test_yaml_does_not_turn_words_into_something_else(read: Read) -> None:
    config = read("methods: [no, yes, on]\nsettings: {arrays: {path: 2020-01-01, target: 1:30}}\n")
    assert config.methods == ("no", "yes", "on")
    assert config.settings["arrays"] == {"path": "2020-01-01", "target": "1:30"}


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("seeds: 2", "seeds", (0, 1)),
        ("seeds: [4, 2]", "seeds", (4, 2)),
        ("seeds: 4,2", "seeds", (4, 2)),
        ("folds: all", "folds", "all"),
        ("folds: 2", "folds", (2,)),
        ("folds: [0, 2]", "folds", (0, 2)),
        ("methods: concat, mbt:layers=2,rollingq", "methods", ("concat", "mbt:layers=2", "rollingq")),
    ],
)
def test_short_forms(read: Read, text: str, field: str, value: Any) -> None:
    assert getattr(read(text), field) == value


def test_the_command_line_wins_and_set_comes_last(read: Read) -> None:
    config = read("seeds: 5\nrecipe: {epochs: 3, lr: 1}\n", {"seeds": "2"}, ["recipe.epochs=7", "seeds=1"])
    assert (config.seeds, config.recipe.epochs, config.recipe.lr) == ((0,), 7, 1.0)


def test_set_reaches_the_settings_of_a_plugin_as_text(read: Read) -> None:
    config = read("settings: {rollingq: {rho: 1}}\n", {}, ["rollingq.beta=1e-1", "rollingq.rho=2"])
    assert config.settings == {"rollingq": {"rho": "2", "beta": "1e-1"}}


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("epochs", "--set epochs: expected key=value"),
        ("recipe.Epochs=1", "expected key=value"),
        ("recpe=1", "--set recpe=1: unknown key 'recpe'. Did you mean 'recipe'?"),
        ("recipe.epochs=0", "--set recipe.epochs: recipe.epochs: Input should be greater than or equal to 1 (found 0)"),
        ("recipe.epoch=1", "unknown key 'epoch'. Did you mean 'epochs'?"),
        ("seeds.more=1", "'seeds' is not a section"),
        ("recipe.epochs=[1", "--set recipe.epochs=[1: the value is not YAML"),
    ],
)
def test_a_wrong_assignment_is_told_which_it_was(read: Read, assignment: str, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        read("seeds: 3\n", {}, [assignment])
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "assignments", "says"),
    [
        ("settings: {rolingq: {rho: 1}}\n", [], "1:27: unknown section or plugin 'rolingq'. Did you mean 'rollingq'?"),
        ("", ["recpe.epochs=5"], "--set recpe.epochs: unknown section or plugin 'recpe'. Did you mean 'recipe'?"),
    ],
)
def test_settings_of_a_plugin_that_does_not_exist_are_refused(
    file: Path, text: str, assignments: list[str], says: str
) -> None:
    file.write_text(text)
    with pytest.raises(RequestError) as caught:
        make_plan(*load(file, {}, assignments), [])
    assert says in str(caught.value)


def test_an_option_is_named_as_the_place_of_its_value(read: Read) -> None:
    with pytest.raises(RequestError, match=r"^--seeds: "):
        read("seeds: 3\n", {"seeds": "none"})


def test_every_value_keeps_its_place(file: Path) -> None:
    file.write_text("seeds: 3\nmethods:\n  - concat\n  - mbt\n")
    sources: Sources = load(file, {"datasets": ["planted"]}, ["recipe.epochs=2"])[1]
    assert sources.place(("methods", 1)) == f"{file}:4:5"
    assert sources.place(("methods",)) == f"{file}:3:3"
    assert sources.place(("methods",), key=True) == f"{file}:2:1"
    assert sources.place(("datasets", 0)) == "--datasets"
    assert sources.place(("recipe", "epochs")) == "--set recipe.epochs"


def test_a_recipe_is_the_data_sets_own_but_for_what_is_given(read: Read) -> None:
    recipe = read("recipe: {lr: 0.5}\n").recipe.resolve("small", 12)
    assert (recipe.name, recipe.lr, recipe.epochs) == ("small", 0.5, 12)
    named = read("recipe: {name: published}\n").recipe.resolve("small", 12)
    assert named == RECIPES["published"]
    assert read("recipe: {name: published, epochs: 2}\n").recipe.resolve("small", 12).epochs == 2


def test_the_schema_knows_every_key_and_forbids_others() -> None:
    found = schema()
    assert set(found["properties"]) == set(Config.model_fields)
    assert found["additionalProperties"] is False
    assert found["$defs"]["RecipeConfig"]["additionalProperties"] is False
