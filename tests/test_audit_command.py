"""`bench data audit` as typed: what it prints and how it ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.commandline import DONE, SOME_FAILED, CommandLine


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    for name in ("here", "prepared", "data"):
        (tmp_path / name).mkdir()
    return CommandLine(tmp_path / "here", tmp_path / "prepared", tmp_path / "data", monkeypatch)


def arrays(file: Path, copied: int) -> str:
    """Vectors of forty numbers in three parts, of which test has noisy copies from train; as a data set's text."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(200, 40)).astype(np.float32)
    split = np.repeat([0, 1, 2], [120, 30, 50])
    values[150 : 150 + copied] = values[:copied] + 0.01 * rng.normal(size=(copied, 40))
    label = rng.integers(0, 4, 200)
    np.savez(file, audio=values, visual=rng.normal(size=(200, 30)), label=label, split=split)
    return f"arrays:path={file}"


def test_near_copies_in_an_honest_split_end_with_code_1(bench: CommandLine, tmp_path: Path) -> None:
    answer = bench("data", "audit", arrays(tmp_path / "x.npz", 8))
    assert answer.code == SOME_FAILED, answer.err
    assert "train and test share 8 near copies of audio contents" in answer.out
    assert "honest: LEAKS" in answer.out
    assert "published: leaks, as published" in answer.out
    clean = bench("data", "audit", arrays(tmp_path / "y.npz", 0))
    assert clean.code == DONE, clean.out


def test_two_lists_of_a_prepared_set_are_held_against_each_other(bench: CommandLine, tmp_path: Path) -> None:
    text = arrays(tmp_path / "x.npz", 8)
    first = bench("data", "audit", text, "--format", "json")
    (near,) = [o for o in first.json["splits"][0]["overlaps"] if o["kind"] == "near"]
    one, other = near["examples"][0].split(" = ")
    mine, theirs = tmp_path / "one.txt", tmp_path / "other.txt"
    ids = [example.split(" = ") for example in near["examples"]]
    mine.write_text("\n".join(a for a, _ in ids))
    theirs.write_text("\n".join(b for _, b in ids))
    answer = bench("data", "audit", text, "--lists", str(mine), str(theirs))
    assert answer.code == SOME_FAILED
    assert f"{one} = {other}" in answer.out


def test_perfect_unimodal_scores_in_the_results_are_a_warning(bench: CommandLine, tmp_path: Path) -> None:
    """The modality is the class: a training on it is right everywhere, and that is said beside a clean split."""
    rng = np.random.default_rng(0)
    label = np.arange(400) % 4
    clear = np.eye(4)[label].repeat(10, axis=1) * 6 + rng.normal(size=(400, 40))
    np.savez(tmp_path / "x.npz", audio=clear, visual=rng.normal(size=(400, 40)), label=label)
    text = f"arrays:path={tmp_path / 'x.npz'}"
    small = ("--set", "tracking.mlflow=false", "--set", "recipe.epochs=4", "--seeds", "1", "--set", "encoder.dim=8")
    ran = bench("run", "--methods", "audio,visual", "--datasets", text, *small)
    assert ran.code == DONE, ran.err
    answer = bench("data", "audit", text)
    assert answer.code == DONE
    said = [line for line in answer.out.splitlines() if "(fold 0, seed 0)" in line]
    assert len(said) == 1
    assert said[0].startswith("warning: ")
    assert "modality=audio" in said[0]
    elsewhere = bench("data", "audit", text, "--results", str(tmp_path / "nowhere"))
    assert "(fold 0, seed 0)" not in elsewhere.out
    assert not (tmp_path / "nowhere").exists()
