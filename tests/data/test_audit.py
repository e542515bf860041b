"""The audit finds what splits share, and only that."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from raw_layouts import crema_clips
from small_set import Small

from bench import names
from bench.api import DataError, Item, Sample
from bench.data.audit import audit, audit_lists
from bench.data.prepared import Prepared, prepare

RAW = Path("raw")


def small(store: Path, kind: type[Small] = Small, **settings: object) -> tuple[Small, Prepared]:
    dataset = kind(kind.Settings(**settings))
    return dataset, prepare("small", dataset, "c0de", RAW, store)


class Twice(Small):
    """Image 39, of test, is image 0, of train."""

    def read(self, root: Path, modality: str, key: str) -> Item:
        """One source."""
        return super().read(root, modality, "v0" if key == "v39" else key)


def test_a_clean_set_is_clean(tmp_path: Path) -> None:
    found = audit(*small(tmp_path))
    assert found.ok
    honest = found.splits[0]
    assert (honest.sizes, honest.groups) == ({"train": 20, "val": 10, "test": 10}, {"train": 10, "val": 5, "test": 5})
    assert honest.classes["train"] == {"0": 7, "1": 7, "2": 6}
    assert honest.overlaps == ()
    assert len(honest.hash) == 16


def test_groups_and_rows_that_cross_are_found(tmp_path: Path) -> None:
    found = audit(*small(tmp_path, split="crossing"))
    assert not found.ok
    overlaps = {(o.what, o.parts): o for o in found.splits[0].overlaps}
    assert overlaps["groups", ("train", "test")].count == 18
    assert overlaps["audio", ("train", "test")].count == 18
    assert overlaps["audio", ("train", "test")].examples[0].startswith("s")
    assert "g10" in overlaps["groups", ("train", "test")].examples
    assert ("visual", ("train", "test")) not in overlaps
    assert "are in both train and test" in found.splits[0].problem
    assert "train and test share 18 of group" in found.to_text()


def test_content_that_was_stored_twice_is_found(tmp_path: Path) -> None:
    found = audit(*small(tmp_path, Twice))
    (overlap,) = found.splits[0].overlaps
    assert (overlap.what, overlap.parts, overlap.count) == ("visual", ("train", "test"), 1)
    assert overlap.examples == ("s0000 = s0039",)
    assert not found.ok


def test_every_fold_is_looked_at(tmp_path: Path) -> None:
    found = audit(*small(tmp_path, Twice, split="none"))
    assert [s.name for s in found.splits] == [f"honest, fold {fold} of 5" for fold in range(5)]
    leaking = [not s.clean for s in found.splits]
    assert any(leaking)
    assert not found.ok


def test_text_and_json_say_the_same(tmp_path: Path) -> None:
    found = audit(*small(tmp_path))
    plain = json.loads(json.dumps(found.to_json()))
    assert plain["ok"] is True
    assert [s["name"] for s in plain["splits"]] == ["honest", "published"]
    assert "train: 20 samples, 10 of group, 3 classes from 6 (2) to 7 (0)" in found.to_text()


def test_a_published_split_that_leaks_is_described_and_not_held_against_the_set(tmp_path: Path) -> None:
    class Listed(Small):
        """With lists that part the pairs."""

        def samples(self, root: Path) -> list[Sample]:
            """All."""
            halves = ("train", "test")
            return [
                dataclasses.replace(s, metadata={"published_split": halves[k % 2]})
                for k, s in enumerate(super().samples(root))
            ]

    found = audit(*small(tmp_path, Listed, split="none"))
    assert found.ok
    published = found.splits[-1]
    assert (published.name, published.held, published.clean) == ("published", False, False)
    assert {o.what: o.count for o in published.overlaps} == {"groups": 20, "audio": 20}
    assert "leaks, as published" in found.to_text()


def test_two_lists_of_crema_d_share_their_actors(tmp_path: Path) -> None:
    dataset = names.resolve_dataset("crema_d")[1]
    clips = crema_clips(6)
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    train.write_text("".join(f"{c},{c[9:12]}\n" for c in clips if not c.endswith("ANG_XX")), encoding="utf-8-sig")
    test.write_text("".join(f"{c},{c[9:12]}\n" for c in clips if c.endswith("ANG_XX")))
    found = audit_lists(dataset, [train, test])
    assert not found.ok
    (overlap,) = found.splits[0].overlaps
    assert (overlap.what, overlap.count, overlap.examples) == ("groups", 6, ("1001", "1002", "1003"))
    assert found.splits[0].classes["test.csv"] == {"ANG": 6}
    assert "train.csv and test.csv share 6 of actor: 1001, 1002, 1003, ..." in found.to_text()
    train.write_text("".join(f"{c},{c[9:12]}\n" for c in clips[6:]))
    test.write_text("".join(f"{c},{c[9:12]}\n" for c in clips[:6]))
    assert audit_lists(dataset, [train, test]).ok


def test_lists_are_held_against_what_is_prepared(tmp_path: Path) -> None:
    dataset, prepared = small(tmp_path / "store", Twice)
    one, other = tmp_path / "one.txt", tmp_path / "other.txt"
    one.write_text("id\ns0000\ns0001\ns0010\n")
    other.write_text("s0011\ns0039\ns0001\n")
    found = audit_lists(dataset, [one, other], prepared)
    shared = {o.what: (o.count, o.examples) for o in found.splits[0].overlaps}
    assert shared["samples"] == (1, ("s0001",))
    assert shared["groups"] == (2, ("g0", "g5"))
    assert shared["visual"][0] == 2
    assert "s0000 = s0039" in shared["visual"][1]
    assert found.splits[0].sizes == {"one.txt": 3, "other.txt": 3}
    with pytest.raises(DataError, match="takes two or more"):
        audit_lists(dataset, [one])


def test_regression_has_no_classes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", a=rng.normal(size=(60, 3)), label=rng.normal(size=60))
    part, dataset = names.resolve_dataset(f"arrays:path={tmp_path / 'x.npz'}")
    found = audit(dataset, prepare("arrays", dataset, part.code, RAW, tmp_path / "store"))
    assert found.ok
    assert found.splits[0].classes == {}
