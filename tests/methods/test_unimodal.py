"""U1 to U3 of the specification, and the choice of the modality."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bench.api import Capability, Inputs


def test_has_an_encoder_a_weight_and_a_bias_for_one_modality_only(task_of, fusion_of, model_of):
    task = task_of(2, dim=768, outputs=6)
    assert sum(p.numel() for p in fusion_of("unimodal", task).parameters()) == 768 * 6 + 6
    model = model_of(fusion_of("unimodal", task_of(3), modality="visual"))
    assert list(model.encoders) == ["visual"]


@pytest.mark.parametrize(("asked", "chosen"), [("", "audio"), ("text", "text")])
def test_reads_the_modality_asked_for_and_else_the_first(task_of, fusion_of, asked, chosen):
    fusion = fusion_of("unimodal", task_of(3), modality=asked)
    assert fusion.uses(fusion.settings, ("audio", "visual", "text")) == (chosen,)


def test_other_modalities_may_be_anything(task_of, fusion_of, model_of, batch_of):
    task = task_of(2)
    model, inputs = model_of(fusion_of("unimodal", task, modality="visual")), batch_of(task).inputs
    spoiled = Inputs({"audio": torch.full_like(inputs.values["audio"], torch.nan), "visual": inputs.values["visual"]})
    assert torch.equal(model(spoiled).logits, model(inputs).logits)
    assert model(inputs).logits.isfinite().all()


def test_equals_concat_with_one_modality_bit_for_bit(task_of, fusion_of, tokens_of):
    task = task_of(1)
    tokens = tokens_of(task)
    one, other = (fusion_of(name, task).double()(tokens).logits for name in ("unimodal", "concat"))
    assert torch.equal(one, other)


def test_its_logits_are_those_of_a_trained_head(task_of, fusion_of, tokens_of):
    task = task_of(2)
    fusion = fusion_of("unimodal", task).double()
    output = fusion(tokens_of(task))
    assert output.best_unimodal()["audio"] is output.logits
    assert fusion.provides(fusion.settings) == {Capability.UNIMODAL_HEADS, Capability.FEATURES}


def test_names_the_modalities_there_are(task_of, fusion_of):
    with pytest.raises(ValueError, match="no modality 'smell'; this task has audio, visual"):
        fusion_of("unimodal", task_of(2), modality="smell")


def test_pools_over_valid_tokens_where_there_is_no_class_token(task_of, fusion_of, tokens_of):
    task = task_of(1)
    tokens = {m: dataclasses.replace(t, has_class_token=False) for m, t in tokens_of(task, masked=True).items()}
    mask = tokens["audio"].mask
    longer = tokens["audio"].x + 100 * (~mask).unsqueeze(-1)  # padding must not count
    fusion = fusion_of("unimodal", task).double()
    changed = {"audio": dataclasses.replace(tokens["audio"], x=longer)}
    torch.testing.assert_close(fusion(changed).logits, fusion(tokens).logits)
