"""CMU-MOSEI and CMU-MOSI from pickles written in the layouts of MultiBench and MMSA."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import plugins
from bench.api import DataError, DataSet
from bench.conformance import datasets as conformance
from bench.data.prepared import find, prepare
from bench.data.sentiment import target_of
from bench.data.splits import split_positions
from bench.scoring import Truth, score

MOSEI, MOSI = (plugins.load("datasets", name) for name in ("cmu_mosei", "cmu_mosi"))
COUNTS = {"train": 300, "valid": 12, "test": 20}
DIMS = {"vision": 35, "audio": 74, "text": 300}
STEPS = 50
RAW = {"train": [-3.0, -0.5, -0.4, 0.0], "valid": [0.5, 0.6, 2.5], "test": [3.0, 1 / 3, -2 / 3, 0.0]}


def mosei(**settings: Any) -> DataSet:
    return MOSEI.plugin(MOSEI.plugin.Settings(**settings))


def multibench(split: str, count: int) -> dict[str, Any]:
    """Padded in front; the first sample of each split has 3 steps, the last none with text."""
    rng = np.random.default_rng(count)
    lengths = np.r_[3, rng.integers(5, STEPS + 1, count - 1)]
    part: dict[str, Any] = {
        name: rng.normal(5, 3, (count, STEPS, dim)).astype(np.float32) for name, dim in DIMS.items()
    }
    for array in part.values():
        for row, length in enumerate(lengths):
            array[row, : STEPS - length] = 0
    part["text"][-1] = 0
    part["vision"][:, :, 7] = 0  # a dead feature
    part["audio"][1, 40:, 2] = -np.inf
    part["audio"][1, 49, 3] = np.nan
    part["labels"] = np.resize(RAW[split], count).reshape(count, 1, 1)
    part["id"] = np.array([[f"{split}-vi_d{row // 3}", str(row), str(row + 1)] for row in range(count)], dtype=object)
    return part


def mmsa(split: str, count: int) -> dict[str, Any]:
    """Padded behind, unaligned, with lengths."""
    rng = np.random.default_rng(count)
    shapes = {"text": (5, 8), "audio": (9, 4), "vision": (7, 3)}
    part: dict[str, Any] = {name: rng.normal(size=(count, *shape)).astype(np.float32) for name, shape in shapes.items()}
    tokens = np.zeros((count, 3, 5), dtype=np.float32)
    tokens[:, 1, :4] = 1
    return part | {
        "text_bert": tokens,
        "raw_text": np.array(["said"] * count, dtype=object),
        "audio_lengths": [6] * count,
        "vision_lengths": np.full(count, 2),
        "annotations": ["Neutral"] * count,
        "classification_labels": np.ones(count),
        "regression_labels": np.resize(RAW[split], count).astype(np.float32),
        "id": [f"{split}_v{row // 2}$_${row}" for row in range(count)],
    }


MMSA = {"text": "5x8", "audio": "9x4", "visual": "7x3"}


def saved(root: Path, layout: Any = multibench, name: str = "mosei_senti_data.pkl", **changed: Any) -> Path:
    content = {split: layout(split, count) for split, count in COUNTS.items()}
    content["train"].update(changed)
    root.mkdir(exist_ok=True)
    (root / name).write_bytes(
        pickle.dumps({s: {k: v for k, v in p.items() if v is not None} for s, p in content.items()}, 4)
    )
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("raw"))


def test_it_keeps_the_contract(root: Path) -> None:
    kind = MOSEI.plugin
    for settings in (kind.Settings(), kind.Settings(modalities="text|visual", task="regression")):
        checks = conformance.checks("cmu_mosei", kind, settings, MOSEI.code, root)
        assert len(checks) == 8
        for check in checks:
            check.run()


def test_train_features_are_standardised_over_valid_steps(root: Path, tmp_path: Path) -> None:
    done = prepare("cmu_mosei", mosei(), MOSEI.code, root, tmp_path)
    train = split_positions(done.index)["train"]
    for m, dim in (("text", 300), ("visual", 35), ("audio", 74)):
        values, mask = done.array(m)[done.rows(m)[train]], done.mask(m)
        assert mask is not None
        valid = values[mask[done.rows(m)[train]]]
        live = np.arange(dim) != (7 if m == "visual" else -1)
        np.testing.assert_allclose(valid.mean(axis=0), 0, atol=1e-4)
        np.testing.assert_allclose(valid.std(axis=0)[live], 1, atol=1e-4)
        assert not values[~mask[done.rows(m)[train]]].any()
    visual, mask = done.array("visual"), done.mask("visual")
    assert mask is not None
    assert not visual[..., 7].any()
    assert mask[0].tolist() == [False] * 47 + [True] * 3
    text = done.mask("text")
    assert text is not None
    assert not text[COUNTS["train"] - 1].any()


def test_infinities_and_nan_are_counted_and_become_zero(root: Path) -> None:
    dataset = mosei()
    samples = dataset.samples(root)
    assert [s.metadata["nonfinite_audio"] for s in samples[:3]] == [0, 11, 0]
    assert {s.metadata["nonfinite_text"] for s in samples} == {0}
    clean = np.nan_to_num(multibench("train", 300)["audio"].astype(np.float64), neginf=0.0)
    valid = clean[(clean != 0).any(axis=2)]
    item = dataset.read(root, "audio", "train/1")
    np.testing.assert_allclose(item.values[49, 2], -valid[:, 2].mean() / valid[:, 2].std(), rtol=1e-4)


def test_groups_are_videos_and_splits_the_official_ones(root: Path) -> None:
    samples = mosei().samples(root)
    assert [s.split for s in samples] == ["train"] * 300 + ["val"] * 12 + ["test"] * 20
    assert [(s.id, s.group) for s in samples[2:4]] == [
        ("train-vi_d0|2|3", "train-vi_d0"),
        ("train-vi_d1|3|4", "train-vi_d1"),
    ]


@pytest.mark.parametrize(
    ("ids", "video"),
    [
        (lambda row: f"-aB_{row}[7]", "-aB_5"),
        (lambda row: f"_x{row}$_$12", "_x5"),
        (lambda row: f"v{row}".encode(), "v5"),
    ],
)
def test_ids_of_every_layout_name_the_video(tmp_path: Path, ids: Any, video: str) -> None:
    saved(tmp_path, id=[ids(row) for row in range(300)])
    assert mosei().samples(tmp_path)[5].group == video


def test_a_repeated_segment_gets_a_number(tmp_path: Path) -> None:
    samples = mosei().samples(saved(tmp_path, id=["a[0]"] * 300))
    assert [s.id for s in samples[:3]] == ["a[0]", "a[0]#2", "a[0]#3"]


def test_mmsa_lengths_say_what_is_valid(tmp_path: Path) -> None:
    saved(tmp_path / "cmu_mosei", mmsa, "unaligned_50.pkl")
    dataset = mosei(**MMSA)
    done = prepare("cmu_mosei", dataset, MOSEI.code, tmp_path, tmp_path / "store")
    valid = {m: mask[0].tolist() for m in done.spec.modalities if (mask := done.mask(m)) is not None}
    assert valid == {
        "text": [True] * 4 + [False],
        "audio": [True] * 6 + [False] * 3,
        "visual": [True] * 2 + [False] * 5,
    }
    assert done.index["group"][5] == "train_v2"
    # What is prepared does not need the pickle, as long as the settings are the same.
    (tmp_path / "cmu_mosei" / "unaligned_50.pkl").unlink()
    again = find("cmu_mosei", mosei(**MMSA), MOSEI.code, tmp_path, tmp_path / "store")
    assert again is not None
    assert again.fingerprint == done.fingerprint


def test_classes() -> None:
    values = [-3.0, -2.5, -0.6, -0.5, -0.4, 0.0, 0.5, 0.6, 1.5, 2.9]
    assert [target_of(v, "3") for v in values] == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2]
    assert [target_of(v, "2") for v in values] == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert [target_of(v, "7") for v in values] == [0, 1, 2, 3, 3, 3, 3, 4, 5, 6]
    assert [target_of(v, "regression") for v in values] == values


def test_regression_is_scored_on_the_sentiment_scale(root: Path, tmp_path: Path) -> None:
    done = prepare("cmu_mosei", mosei(task="regression"), MOSEI.code, root, tmp_path)
    assert done.spec.scale == (-3.0, 3.0)
    truth = Truth.of(done, "honest", 0)
    assert set(truth.score("test", np.zeros((20, 1), dtype=np.float32))) >= {"mae", "acc2", "acc7"}
    # By hand: targets negative, zero, zero, positive, positive.
    target = np.array([-2.0, 0.0, 0.0, 1.0, 3.0], dtype=np.float32)
    value = np.array([[-1.6], [-0.2], [0.3], [-0.6], [9.0]], dtype=np.float32)
    scores = score(value, target, "regression", (-3.0, 3.0))
    assert scores["acc2"] == pytest.approx(3 / 5)  # the zero at -0.2 and the one at -0.6 are wrong
    assert scores["acc2_nonzero"] == pytest.approx(2 / 3)
    assert scores["acc7"] == pytest.approx(4 / 5)  # -2, 0, 0, -1, 3
    # Non-negative: precision 2/2, recall 2/4, F1 2/3; negative: 1/3, 1/1, F1 1/2.
    assert scores["f1"] == pytest.approx(4 / 5 * 2 / 3 + 1 / 5 * 1 / 2)
    # Positive: 1/1, 1/2, F1 2/3; negative: 1/2, 1/1, F1 2/3.
    assert scores["f1_nonzero"] == pytest.approx(2 / 3)
    assert "acc2" not in score(value, target, "regression")
    assert "acc2_nonzero" not in score(value, np.zeros(5, dtype=np.float32), "regression", (-3.0, 3.0))


def test_both_sets_describe_themselves_without_files(tmp_path: Path) -> None:
    for loaded in (MOSEI, MOSI):
        dataset = loaded.plugin(loaded.plugin.Settings())
        spec = dataset.describe(tmp_path)
        assert {m: s.shape for m, s in spec.modalities.items()} == {
            "text": (50, 300),
            "visual": (50, 35),
            "audio": (50, 74),
        }
        assert (spec.num_outputs, spec.modalities["text"].encoder.dim, spec.modalities["text"].encoder.heads) == (
            3,
            120,
            8,
        )
        assert "MultiBench" in str(dataset.unusable(tmp_path))
    assert list(mosei(modalities="visual|text").describe(tmp_path).modalities) == ["visual", "text"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"vision": np.ones((300, 50, 713))}, "give visual=50x713"),
        ({"text": np.ones((300, 20, 300))}, "give text=20x300"),
        ({"audio": None}, "leave audio out"),
        ({"audio": np.ones((299, 50, 74))}, "300 ids, but 299 audio"),
        ({"audio": np.full((300, 50, 74), "x")}, "allowed: numbers"),
        ({"labels": None}, "needs 'id' and 'labels'"),
        ({"labels": np.full(300, "x")}, "does not hold numbers"),
        ({"id": [""] * 300}, "names no video"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        mosei().samples(saved(tmp_path, **changed))
    assert "mosei_senti_data.pkl" in str(caught.value)


def test_a_label_that_is_nan_is_refused(tmp_path: Path) -> None:
    labels = np.ones((300, 1, 1))
    labels[4] = np.nan
    with pytest.raises(DataError, match=r"train-vi_d1.*target nan"):
        prepare("cmu_mosei", mosei(), MOSEI.code, saved(tmp_path, labels=labels), tmp_path / "store")


def test_several_files_need_a_choice(tmp_path: Path) -> None:
    saved(saved(tmp_path), mmsa, "aligned_50.pkl")
    with pytest.raises(DataError, match="choose one: file="):
        mosei().samples(tmp_path)
    assert len(mosei(file="aligned_50.pkl", **MMSA).samples(tmp_path)) == 332
    assert len(mosei(file=str(tmp_path / "mosei_senti_data.pkl")).samples(tmp_path / "elsewhere")) == 332
    with pytest.raises(DataError, match=r"there is no file none\.pkl"):
        mosei(file="none.pkl").samples(tmp_path)


@pytest.mark.parametrize("settings", [{"modalities": "text|sound"}, {"modalities": "text|text"}, {"text": "50"}])
def test_settings_say_what_is_allowed(tmp_path: Path, settings: dict[str, str]) -> None:
    with pytest.raises(DataError, match="allowed: "):
        mosei(**settings).describe(tmp_path)


def test_a_batch_trains_an_encoder_with_its_mask(root: Path) -> None:
    from bench import encoders

    dataset = mosei()
    spec = dataset.describe(root).modalities["text"]
    items = [dataset.read(root, "text", f"train/{row}") for row in (0, 1, 299)]
    encoder = encoders.build(spec.encoder, spec.shape)
    tokens = encoder(
        dataset.load("text", torch.from_numpy(np.stack([i.values for i in items])), None),
        torch.from_numpy(np.stack([i.mask for i in items if i.mask is not None])),
    )
    assert tokens.x.shape == (3, 51, 120)
    assert tokens.x.isfinite().all()
    assert tokens.mask is not None
    assert tokens.mask.sum(dim=1)[[0, 2]].tolist() == [4, 1]
