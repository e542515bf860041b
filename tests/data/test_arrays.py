"""`arrays`: the rules for a user's .npz, and a sentence for everything that can be wrong with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bench import plugins
from bench.api import DataError, DataSet
from bench.data.prepared import Prepared, find, prepare
from bench.data.reader import Reader
from bench.data.splits import split_positions

ARRAYS = plugins.load("datasets", "arrays")
N = 40


def arrays(path: Path, **settings: object) -> DataSet:
    return ARRAYS.plugin(ARRAYS.plugin.Settings(path=str(path), **settings))


def saved(folder: Path, **changed: object) -> Path:
    """A sound file with one array of every kind; `changed` replaces arrays, None removes one."""
    rng = np.random.default_rng(0)
    content: dict[str, object] = {
        "text": rng.normal(3, 2, (N, 6)),
        "audio": rng.normal(-1, 4, (N, 5, 3)).astype(np.float32),
        "mask_audio": np.arange(5) < rng.integers(1, 6, (N, 1)),
        "visual": rng.integers(0, 256, (N, 8, 9, 3)).astype(np.uint8),
        "label": np.array([10, 20, 30, 40] * 10),
        "split": np.repeat([0, 1, 2], [24, 8, 8]),
        "group": np.array([f"g{k // 4}" for k in range(N)]),
        "age": np.arange(N),
        "names": np.array(["a", "b"]),
    }
    content.update(changed)
    np.savez(folder / "x.npz", **{name: value for name, value in content.items() if value is not None})
    return folder / "x.npz"


def prepared(folder: Path, dataset: DataSet) -> Prepared:
    return prepare("arrays", dataset, ARRAYS.code, folder, folder / "store")


def test_every_kind_of_array_finds_its_place(tmp_path: Path) -> None:
    dataset = arrays(saved(tmp_path))
    done = prepared(tmp_path, dataset)
    assert {m: (s.encoder.family, s.shape, s.dtype, s.masked) for m, s in done.spec.modalities.items()} == {
        "text": ("vector", (6,), "float32", False),
        "audio": ("sequence", (5, 3), "float32", True),
        "visual": ("vit", (3, 8, 9), "uint8", False),
    }
    assert (done.spec.num_outputs, done.spec.kind, done.spec.metric) == (4, "classes", "accuracy")
    assert done.spec.class_names == ("10", "20", "30", "40")
    assert done.targets().tolist() == [0, 1, 2, 3] * 10
    assert "label" not in done.index.columns
    assert done.index["age"].tolist() == list(range(N))
    assert done.index["group"].tolist() == [f"g{k // 4}" for k in range(N)]
    inputs = Reader(done, dataset, list(done.spec.modalities)).inputs(np.arange(N))
    for m, values in inputs.values.items():
        assert tuple(values.shape[1:]) == done.spec.modalities[m].shape
    raw = np.load(tmp_path / "x.npz")
    expected = torch.from_numpy(raw["visual"]).float().permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(inputs.values["visual"], expected)
    assert (inputs.masks["audio"].numpy() == raw["mask_audio"]).all()


def test_features_are_standardised_by_valid_train_values_only(tmp_path: Path) -> None:
    text = np.random.default_rng(1).normal(5, 3, (N, 6))
    text[:, 2] = 7.3
    text[24:, 3] += 100  # not seen by train
    text[:24, 4] = 1e-3  # constant in train alone
    dataset = arrays(saved(tmp_path, text=text))
    inputs = Reader(prepared(tmp_path, dataset), dataset, ["text", "audio"]).inputs(np.arange(N))
    standard = inputs.values["text"].numpy()
    for feature in (0, 1, 3, 5):
        np.testing.assert_allclose(standard[:24, feature].mean(), 0, atol=1e-6)
        np.testing.assert_allclose(standard[:24, feature].std(), 1, atol=1e-5)
    assert standard[24:, 3].min() > 20
    assert (standard[:, [2, 4]] == 0).all()
    audio, mask = inputs.values["audio"].numpy(), inputs.masks["audio"].numpy()
    valid = audio[:24][mask[:24]]
    np.testing.assert_allclose(valid.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(valid.std(axis=0), 1, atol=1e-5)
    assert (audio[~mask] == 0).all()


def test_training_does_not_need_the_file(tmp_path: Path) -> None:
    file = saved(tmp_path)
    dataset = arrays(file)
    done = prepared(tmp_path, dataset)
    file.unlink()
    assert set(Reader(done, dataset, ["visual", "text"]).inputs(np.arange(3)).values) == {"visual", "text"}


def test_a_file_that_was_edited_in_place_is_prepared_again(tmp_path: Path) -> None:
    dataset = arrays(saved(tmp_path))
    before = prepared(tmp_path, dataset)
    saved(tmp_path, text=np.random.default_rng(9).normal(size=(N, 6)))
    assert find("arrays", dataset, ARRAYS.code, tmp_path, tmp_path / "store") is None
    assert prepared(tmp_path, dataset).fingerprint != before.fingerprint


def test_without_a_split_one_is_drawn_by_group_and_fold(tmp_path: Path) -> None:
    file = saved(tmp_path, split=None)
    tests = []
    for fold in range(5):
        index = prepared(tmp_path, arrays(file, fold=fold)).index
        positions = split_positions(index)
        assert all(len(p) for p in positions.values())
        tests += positions["test"].tolist()
    assert sorted(tests) == list(range(N))


def test_val_is_carved_where_the_file_has_none(tmp_path: Path) -> None:
    split = np.array(["train"] * 32 + ["test"] * 8)
    index = prepared(tmp_path, arrays(saved(tmp_path, split=split))).index
    positions = split_positions(index)
    assert positions["test"].tolist() == list(range(32, 40))
    assert len(positions["val"]) == 4


def test_floats_are_a_regression_and_strings_are_classes(tmp_path: Path) -> None:
    regression = prepared(tmp_path, arrays(saved(tmp_path, label=np.linspace(-3, 3, N))))
    assert (regression.spec.kind, regression.spec.metric, regression.spec.num_outputs) == ("regression", "mae", 1)
    np.testing.assert_allclose(regression.targets(), np.linspace(-3, 3, N), rtol=1e-6)
    words = prepared(tmp_path, arrays(saved(tmp_path, label=np.array(["sad", "glad"] * 20))))
    assert words.spec.class_names == ("glad", "sad")
    assert words.targets().tolist() == [1, 0] * 20


def test_modalities_can_be_named(tmp_path: Path) -> None:
    dataset = arrays(saved(tmp_path), modalities="audio|text")
    done = prepared(tmp_path, dataset)
    assert list(done.spec.modalities) == ["audio", "text"]


def test_three_axes_can_be_an_image(tmp_path: Path) -> None:
    grey = np.random.default_rng(2).normal(4, 2, (N, 7, 7))
    dataset = arrays(saved(tmp_path, grey=grey, mask_audio=None), modalities="grey|audio", images="grey")
    done = prepared(tmp_path, dataset)
    assert done.spec.modalities["grey"].shape == (1, 7, 7)
    values = Reader(done, dataset, ["grey"]).inputs(np.arange(24)).values["grey"]
    assert values.shape == (24, 1, 7, 7)
    assert abs(values.mean()) < 1e-5


NAN = np.full((N, 6), 1.0)
NAN[3, 2], NAN[5, 1] = np.nan, np.inf


@pytest.mark.parametrize(
    ("changed", "settings", "message"),
    [
        ({"label": None}, {}, "no array 'label' for target.*Arrays: age, audio"),
        ({}, {"target": "lable"}, "no array 'lable' for target. Did you mean 'label'"),
        ({}, {"group": "grup"}, "no array 'grup' for group. Did you mean 'group'"),
        ({}, {"modalities": "text|vidual"}, "no array 'vidual' for modalities. Did you mean 'visual'"),
        ({"text": NAN}, {}, "2 of 240 values of 'text' are NaN or infinite"),
        ({"text": np.ones((N - 1, 6))}, {}, "'text' has 39 rows, but there are 40 targets"),
        ({"split": np.zeros(7, int)}, {}, "'split' has 7 rows, but there are 40 targets"),
        ({"split": np.repeat([0, 1, 3], [24, 8, 8])}, {}, "'split' holds '3'; allowed: 0, 1, 2, train"),
        ({"split": np.repeat([0, 1], [24, 16])}, {}, "'split' has no test samples"),
        ({"text": np.array([["a"] * 6] * N)}, {}, "'text' is <U1.*allowed for a modality: numbers"),
        ({"text": np.array([[{}]] * N)}, {}, "array 'text' cannot be read.*not of Python objects"),
        ({"label": np.zeros(N, int)}, {}, "all 40 targets in 'label' are the same"),
        ({"label": np.full(N, np.nan)}, {}, "40 of 40 targets in 'label' are NaN"),
        ({"label": np.ones((N, 2))}, {}, r"'label' has shape \[40, 2\]; allowed: one value per sample"),
        ({"mask_audio": np.ones((N, 4), bool)}, {}, r"'mask_audio' has shape \[40, 4\]"),
        ({"text": None, "audio": None, "visual": None}, {}, "so there is no modality"),
        ({}, {"images": "text"}, "images=text, but that is no modality"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(
    tmp_path: Path, changed: dict[str, object], settings: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        arrays(saved(tmp_path, **changed), **settings).describe(tmp_path)


def test_what_is_no_file_of_arrays_is_said(tmp_path: Path) -> None:
    missing = arrays(tmp_path / "none.npz")
    assert "there is no file" in str(missing.unusable(tmp_path))
    with pytest.raises(DataError, match="there is no file"):
        missing.describe(tmp_path)
    unnamed = ARRAYS.plugin(ARRAYS.plugin.Settings())
    assert "write arrays:path=FILE.npz" in str(unnamed.unusable(tmp_path))
    (tmp_path / "text.npz").write_text("not a zip file")
    with pytest.raises(DataError, match=r"np\.savez writes one"):
        arrays(tmp_path / "text.npz").describe(tmp_path)
    np.save(tmp_path / "one.npy", np.ones((3, 2)))
    with pytest.raises(DataError, match=r"np\.savez writes one"):
        arrays(tmp_path / "one.npy").describe(tmp_path)
