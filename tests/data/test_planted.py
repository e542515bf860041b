"""`planted`: the truth it states is the truth, and its Bayes bounds hold where they can be worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from bench import plugins
from bench.api import DataError, DataSet
from bench.data.prepared import prepare
from bench.data.splits import split_positions
from bench.data.truth import Interplay, accuracy_bounds, symbol_evidence

PLANTED = plugins.load("datasets", "planted")
NOWHERE = Path("nowhere")


def planted(**settings: object) -> DataSet:
    return PLANTED.plugin(PLANTED.plugin.Settings(**settings))


@pytest.mark.parametrize("preset", ["symmetric", "one_sided", "collapse", "quality", "three"])
def test_every_preset_can_be_prepared_and_split(preset: str, tmp_path: Path) -> None:
    dataset = planted(preset=preset, samples=40)
    prepared = prepare("planted", dataset, PLANTED.code, NOWHERE, tmp_path)
    assert {name: len(p) for name, p in split_positions(prepared.index).items()} == {"train": 40, "val": 10, "test": 20}
    for m, modality in prepared.spec.modalities.items():
        assert prepared.array(m).shape == (70, *modality.stored_shape)
        assert prepared.index[f"quality_{m}"].between(0, 1).all()


def test_the_same_seed_is_the_same_data_and_another_seed_is_not() -> None:
    one, again, other = (planted(samples=20, seed=seed) for seed in (0, 0, 1))
    assert (one.read(NOWHERE, "audio", "3").values == again.read(NOWHERE, "audio", "3").values).all()
    assert not (one.read(NOWHERE, "audio", "3").values == other.read(NOWHERE, "audio", "3").values).any()
    assert not (one.read(NOWHERE, "audio", "3").values == one.read(NOWHERE, "visual", "3").values).any()


def test_collapse_is_the_set_on_which_collapse_was_seen() -> None:
    dataset = planted(preset="collapse")
    spec, samples = dataset.describe(NOWHERE), dataset.samples(NOWHERE)
    assert spec.num_outputs == 10
    assert {m: s.shape for m, s in spec.modalities.items()} == {"audio": (8, 16), "visual": (8, 32)}
    assert sum(s.split == "train" for s in samples) == 4000
    # The sample whose visual quality is best: signs stand at 1.6 q, in both halves, in unit noise.
    best = max(samples[:2000], key=lambda s: s.metadata["quality_visual"])
    tokens = dataset.read(NOWHERE, "visual", best.sources["visual"]).values
    amplitude = np.abs(tokens.mean(axis=0)).mean()
    assert amplitude == pytest.approx(1.6 * best.metadata["quality_visual"], abs=0.25)
    same = [s for s in samples[:2000] if s.target == best.target and s.metadata["quality_visual"] > 0.8]
    products = []
    for sample in same:
        mean = dataset.read(NOWHERE, "visual", sample.sources["visual"]).values.mean(axis=0)
        products.append(np.sign(mean[:16] * mean[16:]))
    assert np.abs(np.mean(products, axis=0)).min() > 0.8  # u x (u P) = P, whatever u was
    residual = np.concatenate(
        [(x := dataset.read(NOWHERE, "audio", str(k)).values) - x.mean(axis=0) for k in range(200)]
    )
    assert residual.std() == pytest.approx(1.5 * math.sqrt(7 / 8), rel=0.02)


def test_what_shows_nothing_has_quality_zero() -> None:
    one_sided = planted(preset="one_sided", samples=50).samples(NOWHERE)
    assert all(s.metadata["quality_visual"] == 0 for s in one_sided)
    unique = planted(unique=1.0, samples=50).samples(NOWHERE)
    shown = np.array([[s.metadata["quality_audio"] > 0, s.metadata["quality_visual"] > 0] for s in unique])
    assert (shown.sum(axis=1) == 1).all()
    assert 0.2 < shown[:, 0].mean() < 0.8
    opposed = planted(preset="quality", samples=50).samples(NOWHERE)
    total = [s.metadata["quality_audio"] + s.metadata["quality_visual"] for s in opposed]
    assert total == pytest.approx([1.0] * len(total))


def test_synergy_needs_two_modalities() -> None:
    dataset = planted(synergy=1.0, samples=400, classes=4)
    assert dataset.describe(NOWHERE).num_outputs == 4
    low, high = dataset.bayes_accuracy()
    alone = planted(samples=400, classes=4).bayes_accuracy()
    assert 0.3 < low <= high + 0.03 < alone[1]


@pytest.mark.parametrize(
    ("modalities", "names"), [(2, ["audio", "visual"]), (5, ["audio", "visual", "text", "depth", "touch"])]
)
def test_two_to_five_modalities(modalities: int, names: list[str]) -> None:
    dataset = planted(modalities=modalities, samples=8)
    assert list(dataset.describe(NOWHERE).modalities) == names
    assert dataset.read(NOWHERE, names[-1], "0").values.shape == (8, 16)


@pytest.mark.parametrize("settings", [{"modalities": 1}, {"classes": 1}, {"unique": 0.7, "synergy": 0.7}])
def test_impossible_tasks_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(DataError, match="planted: "):
        planted(**settings).describe(NOWHERE)


def test_two_gaussians_have_the_closed_form_accuracy() -> None:
    # Two classes at distance d in noise of variance v: the best accuracy is Phi(d / (2 sqrt v)).
    rng = np.random.default_rng(0)
    prototypes, count, variance = np.array([[0.0, 0.0], [1.2, 1.6]]), 40_000, 2.25
    target = rng.integers(0, 2, count)
    mean = prototypes[target] + rng.normal(0, math.sqrt(variance), (count, 2))
    low, high = accuracy_bounds(
        lambda q: symbol_evidence("linear", mean, prototypes, q["audio"], variance),
        {"audio": np.ones(count)},
        {"audio": np.ones(1)},
        target,
    )
    assert low == high == pytest.approx(NormalDist().cdf(2.0 / (2 * 1.5)), abs=0.005)


def test_the_product_code_is_averaged_over_its_signs() -> None:
    # One coordinate: p(z | s) is the mean of two Gaussians at (1, p) and (-1, -p), relative to one at 0.
    z, variance = np.array([[0.7, -1.1]]), 0.8

    def density(u: float, prototype: float) -> float:
        centre = np.array([u, u * prototype])
        return math.exp(-((z[0] - centre) ** 2).sum() / (2 * variance))

    nothing = math.exp(-(z[0] ** 2).sum() / (2 * variance))
    expected = [math.log((density(1, p) + density(-1, p)) / 2 / nothing) for p in (1.0, -1.0)]
    ours = symbol_evidence("product", z, np.array([[1.0], [-1.0]]), np.ones(1), variance)
    np.testing.assert_allclose(ours[0], expected, rtol=1e-12)


def test_interplay_mixes_likelihoods() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 4, 3))
    likelihood = (
        0.5 * np.exp(a + b)
        + 0.2 * (np.exp(a) + np.exp(b)) / 2
        + 0.3 * np.stack([sum(np.exp(a[:, (y + r) % 3] + b[:, r]) for r in range(3)) / 3 for y in range(3)], axis=1)
    )
    ours = Interplay(unique=0.2, synergy=0.3).class_evidence({"audio": a, "visual": b})
    np.testing.assert_allclose(ours, np.log(likelihood), rtol=1e-10)


def test_the_bounds_of_the_default_task_are_close() -> None:
    dataset = planted()
    low, high = dataset.bayes_accuracy()
    assert 1 / 8 < low <= high <= 1
    assert high - low < 0.06
