"""The grammar of method and data set texts, and what a wrong one is told."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import api, names, plugins
from bench.api import setting
from bench.config import split_list
from bench.errors import RequestError
from bench.names import Part, all_methods, fill, resolve_dataset, resolve_method, resolve_part, split_settings

AV = ("audio", "visual")


@dataclass(frozen=True)
class Kinds(api.Settings):
    """One field of every kind a setting may have."""

    number: float = setting(1.0, low=-1e9, high=1e9)
    count: int = setting(3, low=0, high=1000)
    flag: bool = setting(True)
    path: str = setting("")
    mode: Literal["plane", "svd"] = setting("plane", choices=("plane", "svd"))
    maybe: int | None = setting(None)


@pytest.mark.parametrize(
    ("text", "name", "given"),
    [
        ("concat", "concat", {}),
        ("ogm:alpha=0.5", "ogm", {"alpha": "0.5"}),
        ("rollingq:rho=2:beta=1e-3", "rollingq", {"rho": "2", "beta": "1e-3"}),
        ("arrays:path=C:\\data\\x.npz:target=y", "arrays", {"path": "C:\\data\\x.npz", "target": "y"}),
        ("arrays:path=http://host:80/x.npz", "arrays", {"path": "http://host:80/x.npz"}),
        ("arrays:path=a=b", "arrays", {"path": "a=b"}),
        ("arrays:path=", "arrays", {"path": ""}),
    ],
)
def test_settings_are_split_at_names_only(text: str, name: str, given: dict[str, str]) -> None:
    assert split_settings(text) == (name, given)


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("a,b , c", ["a", "b", "c"]),
        ("arrays:path=x,1.npz,planted", ["arrays:path=x,1.npz", "planted"]),
        ("mbt:layers=2,mmml:readout=attn+rollingq", ["mbt:layers=2", "mmml:readout=attn+rollingq"]),
        ("", []),
    ],
)
def test_lists_are_split_before_names_only(text: str, items: list[str]) -> None:
    assert split_list(text) == items


def test_an_exponent_does_not_end_a_strategy() -> None:
    method = resolve_method("vanilla_mt+rollingq:rho=1e+0:beta=0.5+ogm", AV)
    assert [part.name for part in method.strategies] == ["rollingq", "ogm"]
    assert method.strategies[0].settings.rho == 1.0
    assert fill(Kinds, {"number": "1e+3"}, "x").number == 1000.0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("rollingq", "vanilla_mt+rollingq"),
        ("rollingq:rho=2", "vanilla_mt+rollingq:rho=2.0"),
        ("rollingq:beta=0.3:rho=1", "vanilla_mt+rollingq"),
        ("rollingq:beta=0.5:rho=2", "rollingq:rho=2:beta=5e-1"),
        ("ogm", "concat+ogm"),
        ("ogm:ge=no", "concat+ogm:ge=False"),
        ("pmr", "concat+pmr"),
        ("audio", "unimodal:modality=audio"),
        (" concat ", "concat"),
        ("rollingq+ogm", "vanilla_mt+rollingq+ogm"),
    ],
)
def test_every_spelling_of_a_method_has_one_canonical_text(one: str, other: str) -> None:
    assert resolve_method(one, AV).canonical == resolve_method(other, AV).canonical


def test_the_label_is_what_was_typed() -> None:
    method = resolve_method("rollingq:rho=2", AV)
    assert (method.label, method.canonical) == ("rollingq:rho=2", "vanilla_mt+rollingq:rho=2.0")


@pytest.mark.parametrize(
    "name", [n for n in plugins.names("methods") if isinstance(plugins.find("methods", n), plugins.Loaded)]
)
def test_aliases_stand_for_methods(name: str) -> None:
    for alias, text in getattr(plugins.load("methods", name).plugin, "aliases", {}).items():
        assert resolve_method(alias, AV).canonical == resolve_method(text, AV).canonical


def test_an_alias_takes_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins.load("methods", "mbt").plugin, "aliases", {"bottleneck": "mbt:head=token"})
    assert (
        resolve_method("bottleneck:layers=2", AV).canonical == resolve_method("mbt:layers=2:head=token", AV).canonical
    )


def test_a_plugin_comes_before_a_modality_of_its_name() -> None:
    assert resolve_method("concat", ("concat", "visual")).canonical == "concat"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rolingq", "unknown method 'rolingq'. Did you mean 'rollingq'? Known: audio, concat"),
        ("vanilla_mt+rolingq", "unknown method 'rolingq'. Did you mean 'rollingq'?"),
        ("visuell", "Did you mean 'visual'?"),
        ("rollingq:row=2", "rollingq: unknown setting 'row'. Did you mean 'rho'?"),
        ("rollingq:rho=two", "rollingq:rho=two: expected a finite number, found 'two'"),
        ("rollingq:rho=nan", "expected a finite number"),
        ("rollingq:rho=inf", "expected a finite number"),
        ("rollingq:rho=-1", "rollingq:rho=-1.0: must lie in 0.0 to inf"),
        ("rollingq:beta=2.5", "must lie in 0.0 to 2.0"),
        ("rollingq:max_rotations=1.5", "expected a whole number, found '1.5'"),
        ("rollingq:rotation=plain", "expected one of plane, svd"),
        ("mmml:readout=mean", "must be one of mlp, attn"),
        ("ogm:ge=maybe", "expected true or false"),
        ("rollingq:rho=1:rho=2", "setting 'rho' is given twice"),
        ("concat+mbt", "'mbt' is a fusion and cannot follow '+'"),
        ("ogm+ogm", "strategy 'ogm' is named twice"),
        ("ensemble+ogm", "no strategy can act on it"),
        ("Concat", "is no name with settings"),
        ("", "is no name with settings"),
    ],
)
def test_a_wrong_method_is_told_what_is_allowed(text: str, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        resolve_method(text, AV, where="bench.yaml:2:9")
    assert says in str(caught.value)
    assert str(caught.value).startswith("bench.yaml:2:9")


def test_an_unknown_data_set_is_told_what_is_known() -> None:
    with pytest.raises(RequestError, match=r"unknown data set 'plantd'\. Did you mean 'planted'"):
        resolve_dataset("plantd")


def test_the_text_wins_over_settings_from_elsewhere() -> None:
    part = resolve_part("methods", "rollingq:rho=2", {"rollingq": {"rho": 3, "beta": 0.5}})
    assert (part.settings.rho, part.settings.beta) == (2.0, 0.5)


def test_all_methods_holds_modalities_first_and_no_bare_unimodal() -> None:
    found = all_methods(AV)
    assert found[:3] == ["audio", "visual", "ensemble"]
    assert "unimodal" not in found
    assert len(set(found)) == len(found)
    fusions = [n for n in found if n in ("concat", "vanilla_mt", "mbt", "mmml", "sum")]
    assert max(map(found.index, fusions)) < min(found.index(s) for s in ("rollingq", "ogm", "pmr"))


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ({"flag": "off"}, "flag", False),
        ({"flag": 1}, "flag", True),
        ({"count": "7"}, "count", 7),
        ({"number": 2}, "number", 2.0),
        ({"maybe": "none"}, "maybe", None),
        ({"maybe": "4"}, "maybe", 4),
        ({"mode": "svd"}, "mode", "svd"),
        ({"path": 3}, "path", "3"),
    ],
)
def test_texts_become_the_type_of_their_field(given: dict[str, Any], field: str, value: Any) -> None:
    found = getattr(fill(Kinds, given, "x"), field)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("given", [{"flag": "2"}, {"count": "1.0"}, {"count": 1001}, {"number": 2e9}, {"maybe": "x"}])
def test_values_that_do_not_fit_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        fill(Kinds, given, "x")


words = st.text(st.characters(codec="ascii", exclude_characters=":+,\n\r"), max_size=12)
paths = st.one_of(words, words.map(lambda w: f"C:\\{w}"), words.map(lambda w: f"s3://{w}:80/x"))
settings = st.builds(
    Kinds,
    number=st.floats(-1e9, 1e9),
    count=st.integers(0, 1000),
    flag=st.booleans(),
    path=paths,
    mode=st.sampled_from(["plane", "svd"]),
    maybe=st.none() | st.integers(),
)


@given(settings)
def test_a_part_is_read_back_from_its_text(chosen: Kinds) -> None:
    text = Part("kinds", object, chosen, "").text
    name, found = split_settings(text)
    assert name == "kinds"
    assert fill(Kinds, found, "kinds") == chosen


@given(st.floats(0, 100), st.floats(0, 2), st.integers(0, 9), st.sampled_from(["plane", "svd"]), st.booleans())
def test_a_canonical_text_stands_for_itself(rho: float, beta: float, most: int, rotation: str, ge: bool) -> None:
    text = f"rollingq:rho={rho}:beta={beta}:max_rotations={most}:rotation={rotation}+ogm:ge={ge}"
    method = resolve_method(text, AV)
    again = resolve_method(method.canonical, AV)
    assert again.canonical == method.canonical
    assert [p.settings for p in again.strategies] == [p.settings for p in method.strategies]


@given(st.permutations(["rho=2.0", "beta=0.5", "max_rotations=3"]))
def test_the_order_of_settings_does_not_matter(order: list[str]) -> None:
    assert resolve_method(":".join(["rollingq", *order]), AV).canonical == (
        "vanilla_mt+rollingq:rho=2.0:beta=0.5:max_rotations=3"
    )


def test_places_are_told_apart() -> None:
    @dataclass(frozen=True)
    class Placed(api.Settings):
        folder: str = setting("", place=True)
        size: int = setting(1)

    assert names.places(Placed()) == ("folder",)
    assert names.changed(dataclasses.replace(Placed(), size=2)) == {"size": 2}
