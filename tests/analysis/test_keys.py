"""Key geometry of trained models: it agrees with the stored records, shows rotations, and is silent without one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.analysis.keys import KeyGeometry
from bench.api import attention_imbalance
from bench.layers import ClassTokenAttention
from tests.analysis.asking import asked, opened
from tests.analysis.conftest import ROTATED


@pytest.fixture(scope="module")
def rows(collapsed):
    return {row.label: row for row in asked(collapsed, KeyGeometry())}


def test_rows_without_competing_keys_are_skipped(rows):
    assert list(rows) == ["vanilla_mt", ROTATED, "vanilla_mt:layers=2"]


def test_on_train_it_is_what_the_record_says(collapsed):
    """The stored epoch's record was measured on all of train (96 samples) in the same way."""
    trial = opened(collapsed)
    trial.positions = {**trial.positions, "test": trial.positions["train"]}
    found = KeyGeometry().measure(trial).values["attention.site"]
    stored = trial.record["epochs"][trial.record["selected_epoch"]]["sites"]["attention.site"]
    assert found["air"] == pytest.approx(attention_imbalance(stored["cosines"]), abs=1e-6)
    assert found["cosine"] == pytest.approx(stored["cosines"], abs=1e-6)
    assert found["radius"] == pytest.approx(stored["key_norms"], rel=1e-5)
    assert found["query_norm"] == pytest.approx(stored["query_norm"], rel=1e-5)


def test_a_row_without_rotations_is_not_turned(rows):
    (plain,) = rows["vanilla_mt"].measurements
    assert plain.at("attention.site", "turned") < 0.05


def test_a_turned_query_is_seen_with_its_angle(collapsed):
    trial = opened(collapsed)
    attention = trial.model.fusion.attention
    assert isinstance(attention, ClassTokenAttention)
    query = attention.query(attention.class_token).detach()
    aside = torch.roll(query, 1) - torch.roll(query, 1) @ query / (query @ query) * query
    plane = torch.stack([query / query.norm(), aside / aside.norm()], dim=1)
    c, s = np.cos(1.0), np.sin(1.0)
    turn = torch.tensor([[c, -s], [s, c]], dtype=torch.float32)
    attention.site.rotate(torch.eye(len(query)) + plane @ (turn - torch.eye(2)) @ plane.T)
    found = KeyGeometry().measure(trial).values["attention.site"]
    assert found["turned"] == pytest.approx(np.degrees(1.0), abs=1e-2)


def test_keys_of_one_kind_have_no_imbalance(collapsed):
    """Null: both modalities show the same tokens."""
    trial = opened(collapsed)
    encode = trial.model.fusion.encode
    trial.model.fusion.encode = lambda encoders, inputs: dict.fromkeys(
        trial.modalities, encode(encoders, inputs)["audio"]
    )
    found = KeyGeometry().measure(trial).values["attention.site"]
    assert found["air"] == 0
    assert found["key_cosine"] == pytest.approx(1)
    assert found["distance"] == 0


def test_every_layer_has_its_own_line(rows):
    table, rotations = KeyGeometry().tables(list(rows.values()))
    sites = table.sections[0].frame.groupby("Method")["Site"].apply(list).to_dict()
    assert sites["vanilla_mt:layers=2"] == ["attention.site", "further.0.attention.site"]
    assert list(table.sections[0].frame.columns)[-1] == "Trials"
    assert set(rotations.values["label"]) == {ROTATED}


def test_a_rotation_is_told_with_what_it_was_to_do(rows):
    _, rotations = KeyGeometry().tables([rows[ROTATED]])
    (event,) = rotations.values.to_dict("records")
    (answer,) = rows[ROTATED].answers
    before, after = (answer.epochs[e]["sites"]["attention.site"] for e in (0, 1))
    assert event["epoch"] == 0
    assert event["before"] == attention_imbalance(before["cosines"])
    assert event["after"] == attention_imbalance(after["cosines"])
    assert event["predicted"] * event["before"] < 0


def test_without_rotations_there_is_no_such_table(rows):
    assert [table.name for table in KeyGeometry().tables([rows["vanilla_mt"]])] == ["keys"]


def test_figures_are_drawn_for_every_data_set(rows):
    figures = KeyGeometry().figures(list(rows.values())[1:])
    assert [name.split("-")[0] for name in figures] == ["_polar", "_cosines", "_epochs"]
    assert all(text.startswith("<svg") for text in figures.values())
