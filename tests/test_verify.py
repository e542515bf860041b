"""A trial's first steps trained again: equal to the bit, or where they part and what changed since."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bench import plugins
from bench.plan import TrialSpec
from bench.store import Store, npz
from bench.verify import TOLERANCE, Verdict, verify
from tests.commandline import CommandLine, forget_plugins
from tests.test_trajectory import ROTATES
from tests.world import World, make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A trained method that acts after its first epoch; nothing in a test may change it."""
    made = make_world(tmp_path_factory.mktemp("verify") / "w", ROTATES)
    assert [o.status for o in made.run()] == ["finished"]
    return made


@pytest.fixture
def copy(world: World, tmp_path: Path) -> Store:
    """A copy of its results that may be changed."""
    shutil.copytree(world.store.folder / "trials", tmp_path / "results" / "trials")
    return Store(tmp_path / "results")


def trial(world: World) -> TrialSpec:
    return world.plan.trials[0]


def prepared(world: World) -> Path:
    return world.datasets[0].prepared.folder.parent


def again(world: World, store: Store, steps: int | None = None) -> Verdict:
    return verify(store, trial(world).id, prepared(world), steps)


def kinds(verdict: Verdict) -> list[str]:
    return [change.kind for change in verdict.changes]


def change_file(store: Store, name: str, **values: object) -> None:
    (file,) = (store.folder / "trials").glob(f"*/{name}")
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize(("steps", "compared"), [(None, 3), (1, 1), (2, 2), (5, 5), (9, 9)])
def test_the_same_trial_is_equal_to_the_bit(world: World, steps: int | None, compared: int) -> None:
    """Three steps an epoch; beyond the first the stored action is carried out."""
    before = sorted(world.folder.rglob("*"))
    verdict = again(world, world.store, steps)
    assert (verdict.equal, verdict.steps, verdict.tolerance, verdict.changes) == (True, compared, 0.0, ())
    assert sorted(world.folder.rglob("*")) == before


def test_every_step_of_every_epoch_is_stored_and_their_mean_is_the_epochs_loss(world: World) -> None:
    losses = world.store.arrays(trial(world).id, "losses.npz")
    epochs = world.store.read(trial(world).id, "record.json")["epochs"]
    batches = np.array([32, 32, trial(world).num_train - 64])
    assert list(losses) == ["0000", "0001", "0002"]
    for epoch, stored in enumerate(epochs):
        mean = (losses[f"{epoch:04d}"] * batches).sum() / batches.sum()
        assert mean == pytest.approx(sum(stored["losses"].values()), rel=1e-6)


def test_the_first_step_that_differs_is_named(world: World, copy: Store) -> None:
    file = copy.trial(trial(world).id) / "losses.npz"
    losses = copy.arrays(trial(world).id, "losses.npz")
    losses["0001"][2] = np.nextafter(losses["0001"][2], np.float32(9))
    file.write_bytes(npz(losses))
    assert again(world, copy).equal
    verdict = again(world, copy, 9)
    assert verdict.parting is not None
    assert (verdict.parting.epoch, verdict.parting.step, verdict.steps) == (1, 2, 6)
    assert verdict.parting.stored == float(losses["0001"][2])
    assert not verdict.equal


def test_an_old_trial_is_compared_by_the_mean_of_its_first_epoch(world: World, copy: Store) -> None:
    (copy.trial(trial(world).id) / "losses.npz").unlink()
    assert again(world, copy).equal
    epochs = copy.read(trial(world).id, "record.json")["epochs"]
    epochs[0]["losses"]["joint"] *= 1 + 1e-6
    change_file(copy, "record.json", epochs=epochs)
    verdict = again(world, copy)
    assert verdict.parting is not None
    assert (verdict.parting.epoch, verdict.parting.step) == (0, None)


def test_a_changed_configuration_is_told(world: World, copy: Store) -> None:
    spec = copy.read(trial(world).id, "spec.json")
    change_file(copy, "spec.json", recipe={**spec["recipe"], "lr": 0.5})
    verdict = again(world, copy)
    assert kinds(verdict) == ["configuration"]
    assert verdict.parting is not None


def test_another_library_is_told_and_compared_within_a_tolerance(world: World, copy: Store) -> None:
    versions = copy.read(trial(world).id, "record.json")["versions"]
    change_file(copy, "record.json", versions={**versions, "torch": "2.0.0"})
    losses = copy.arrays(trial(world).id, "losses.npz")
    (copy.trial(trial(world).id) / "losses.npz").write_bytes(npz({k: x * 1.0001 for k, x in losses.items()}))
    verdict = again(world, copy)
    assert kinds(verdict) == ["libraries"]
    assert (verdict.equal, verdict.tolerance) == (True, TOLERANCE)
    (copy.trial(trial(world).id) / "losses.npz").write_bytes(npz({k: x * 1.01 for k, x in losses.items()}))
    assert not again(world, copy).equal


def test_another_device_is_compared_within_a_tolerance(world: World, copy: Store) -> None:
    change_file(copy, "record.json", device="NVIDIA Something")
    assert again(world, copy).tolerance == TOLERANCE


def test_changed_data_is_told(world: World, copy: Store, tmp_path: Path) -> None:
    folder = world.datasets[0].prepared.folder
    shutil.copytree(folder, tmp_path / "prepared" / folder.name)
    audio = np.load(tmp_path / "prepared" / folder.name / "audio.npy")
    np.save(tmp_path / "prepared" / folder.name / "audio.npy", audio + 1)
    verdict = verify(copy, trial(world).id, tmp_path / "prepared")
    assert kinds(verdict) == ["data"]
    assert "audio.npy is not what was prepared" in verdict.changes[0].text
    assert verdict.parting is not None
    assert (verdict.parting.epoch, verdict.parting.step) == (0, 0)


def test_data_that_is_not_there_is_told(world: World, tmp_path: Path) -> None:
    verdict = verify(world.store, trial(world).id, tmp_path / "nowhere")
    assert kinds(verdict) == ["data"]
    assert trial(world).fingerprint in verdict.changes[0].text
    assert not verdict.equal


@pytest.fixture
def edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The fusion's file with a line more, in a folder that comes first."""
    (tmp_path / "methods").mkdir()
    origin = Path(plugins.load("methods", "vanilla_mt").origin)
    text = origin.read_text()
    assert text.count("class VanillaMT") == 1
    (tmp_path / "methods" / "vanilla_mt.py").write_text(f"{text}\n\nEDITED = 1\n")
    monkeypatch.setattr(plugins, "__path__", [*plugins.__path__])
    monkeypatch.delitem(sys.modules, "bench.plugins.methods.vanilla_mt")
    plugins.use_folder(tmp_path)
    yield tmp_path / "methods" / "vanilla_mt.py"
    forget_plugins()


def test_changed_code_is_told_and_trained_all_the_same(world: World, edited: Path) -> None:
    verdict = again(world, world.store)
    assert kinds(verdict) == ["code"]
    assert str(edited) in verdict.changes[0].text
    assert verdict.equal  # this edit moves no number


def test_the_command_says_it_and_exits_accordingly(
    world: World, copy: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = CommandLine(tmp_path, prepared(world), tmp_path, monkeypatch)
    answer = bench("verify", trial(world).id[:6], "--steps", "2")
    assert (answer.code, "2 steps are equal to the bit" in answer.out) == (0, True), answer
    change_file(copy, "spec.json", seed=7)
    answer = bench("verify", trial(world).id)
    assert answer.code == 1
    assert "changed configuration" in answer.out
    assert "diverged at epoch 0, step 0: the loss was" in answer.out
    assert bench("verify", trial(world).id, "--format", "json").json["parting"]["step"] == 0
    answer = bench("verify", "nothing")
    assert (answer.code, "no finished trial of that id" in answer.err) == (2, True)
