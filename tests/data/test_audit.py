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
from bench.data.priors import Score

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


class Mislabelled(Small):
    """Images 39 and 0 are one; their targets are both 0, and those of 38 and 1, which are one too, are 2 and 1."""

    def read(self, root: Path, modality: str, key: str) -> Item:
        """One source."""
        return super().read(root, modality, {"v39": "v0", "v38": "v1"}.get(key, key))


def test_equal_content_with_different_targets_is_said(tmp_path: Path) -> None:
    found = audit(*small(tmp_path, Mislabelled))
    by_modality = {conflict.modality: conflict for conflict in found.conflicts}
    assert by_modality["visual"].count == 2
    assert by_modality["visual"].examples == ("s0001", "s0038")
    assert by_modality["audio"].count == 40  # each clip serves two samples, and classes alternate
    assert "every modality" not in by_modality
    (overlap,) = found.splits[0].overlaps
    assert (overlap.count, overlap.conflicting) == (2, 1)
    assert "share 2 visual contents (1 with another target)" in found.to_text()
    assert "warning: 2 samples hold the same visual and different targets: s0001, s0038" in found.to_text()


def test_warnings_are_no_leaks(tmp_path: Path) -> None:
    """A perfect score, conflicting targets: worth a look, and the split is as clean as it was."""
    perfect = Score.of("audio (fold 0, seed 0)", "test", 10, 10)
    dataset, prepared = small(tmp_path)
    found = audit(dataset, prepared, trained=[perfect, Score.of("visual (fold 0, seed 0)", "test", 3, 10)])
    assert found.ok
    texts = [text for text in found.warnings if "seed 0" in text]
    assert len(texts) == 1
    assert texts[0].startswith("audio (fold 0, seed 0) is right on 100.0 % of test")
    assert json.loads(json.dumps(found.to_json()))["trained"][0]["accuracy"] == 1.0


def test_a_class_that_train_lacks_is_said(tmp_path: Path) -> None:
    class Unseen(Small):
        """Test has a class of its own."""

        def samples(self, root: Path) -> list[Sample]:
            """All."""
            return [
                dataclasses.replace(s, target=2.0 if s.split == "test" else s.target % 2) for s in super().samples(root)
            ]

    found = audit(*small(tmp_path, Unseen))
    assert found.splits[0].unseen == {"test": ("2",)}
    assert "honest: test has classes that train does not have: 2" in found.warnings
    assert found.ok


def test_the_nearest_train_sample_knows_the_class_of_a_copy(tmp_path: Path) -> None:
    """All of test is in train already, with its classes: nothing is left to measure."""

    class Repeated(Small):
        """Image k is image k - 30, whose class it shares, where there is one."""

        def read(self, root: Path, modality: str, key: str) -> Item:
            """One source."""
            k = int(key[1:])
            return super().read(root, modality, f"v{k - 30}" if modality == "visual" and k >= 30 else key)

    found = audit(*small(tmp_path, Repeated))
    scores = {(s.predictor, s.part): s for s in found.splits[0].scores}
    assert scores["the nearest train sample by visual", "test"].accuracy == 1.0
    assert scores["the nearest train sample by audio", "test"].accuracy < 1.0
    assert any(
        text.startswith("honest: the nearest train sample by visual is right on 100.0 %") for text in found.warnings
    )
