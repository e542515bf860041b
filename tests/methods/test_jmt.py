"""J1 to J4 of the specification, the count behind Table 4, both forms and both read-outs."""

from __future__ import annotations

import dataclasses
import importlib

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bench.api import Capability, Tokens

jmt = importlib.import_module("bench.plugins.methods.jmt")

FORMS = [(False, "mean"), (False, "attn"), (True, "mean"), (True, "attn")]
forms = pytest.mark.parametrize(("lite", "readout"), FORMS)


def test_the_lite_form_has_the_parameters_and_multiplications_of_table_4(task_of, fusion_of):
    task = task_of(2, dim=768, outputs=6)
    with torch.device("meta"):
        fusion = fusion_of("jmt", task, lite=True).eval()
        fusion.streams.full = True
        tokens = {"audio": Tokens(torch.empty(1, 177, 768)), "visual": Tokens(torch.empty(1, 197, 768))}
        with FlopCounterMode(display=False) as counter:
            fusion(tokens)
    probes = 2 * (768 * 6 + 6)
    assert 57_494_016 + probes + sum(p.numel() for p in fusion.parameters()) == 62_232_594
    operators = counter.get_flop_counts()["Global"]
    linear = sum(n for operator, n in operators.items() if operator in (torch.ops.aten.addmm, torch.ops.aten.mm))
    assert round(128e-9 * (10_749_069_312 + linear / 2 + 2 * 768 * 6), 4) == 1494.8667


@pytest.mark.parametrize("count", [2, 3])
def test_padding_to_the_longest_changes_no_logit(task_of, fusion_of, tokens_of, count):
    task = task_of(count)
    tokens = tokens_of(task)
    fusion = fusion_of("jmt", task, lite=True).double().eval()
    short = fusion(tokens).logits
    fusion.streams.full = True
    assert {t.x.shape[1] for t in fusion.streams.fused(tokens).values()} == {5 + 2 * (count - 1)}
    torch.testing.assert_close(fusion(tokens).logits, short, rtol=0, atol=1e-12)


@forms
def test_a_sample_has_no_influence_on_another(task_of, fusion_of, tokens_of, lite, readout):
    task = task_of(3)
    fusion = fusion_of("jmt", task, lite=lite, readout=readout, steps=4).double().eval()
    tokens = tokens_of(task, masked=True)
    before = fusion(tokens).logits
    changed = {m: dataclasses.replace(t, x=t.x.clone()) for m, t in tokens.items()}
    for t in changed.values():
        t.x[1] += 3.0
    moved = (fusion(changed).logits - before).abs().amax(dim=1)
    assert moved[1] > 1e-3
    assert moved[[0, 2, 3]].max() < 1e-12


@forms
def test_learns_everywhere_but_in_the_key_biases(
    task_of, fusion_of, model_of, batch_of, live_parameters, lite, readout
):
    task = task_of(3)
    fusion = fusion_of("jmt", task, lite=lite, readout=readout, steps=4, dropout=0.0)
    model, batch = model_of(fusion), batch_of(task, masked=True)
    losses = fusion.terms(model(batch.inputs), batch)
    names = {n for n, _ in fusion.named_parameters(prefix="fusion")}
    dead = {n for n in names if n.endswith("key.bias")}
    assert names - live_parameters(model, losses.values()) == dead
    assert set(fusion.dead_parameters) == {"*.key.bias"}


def test_with_one_step_cross_attention_is_affine_in_its_values(task_of, fusion_of, tokens_of):
    task = task_of(2)
    fusion = fusion_of("jmt", task, steps=1).double().eval()
    tokens = tokens_of(task)
    before = fusion(tokens).logits
    for cross in fusion.streams.cross:
        for linear in (cross.query, cross.key):
            torch.nn.init.normal_(linear.weight, std=5.0)
    torch.testing.assert_close(fusion(tokens).logits, before, rtol=0, atol=1e-12)
    torch.nn.init.normal_(fusion.streams.cross[0].value.weight)
    assert (fusion(tokens).logits - before).abs().max() > 1e-3


def test_time_has_no_direction(task_of, fusion_of, tokens_of):
    task = task_of(3)
    fusion = fusion_of("jmt", task, steps=6).double().eval()
    tokens = tokens_of(task, lengths=(7, 7, 7))  # behind the class token one token per step
    order = torch.tensor([0, 4, 2, 6, 1, 5, 3])
    together = {m: dataclasses.replace(t, x=t.x[:, order]) for m, t in tokens.items()}
    before = fusion(tokens).logits
    torch.testing.assert_close(fusion(together).logits, before, rtol=0, atol=1e-12)
    alone = tokens | {"audio": together["audio"]}
    assert (fusion(alone).logits - before).abs().max() > 1e-4  # the joint stream sees which steps meet


@pytest.mark.parametrize(("length", "steps"), [(9, 4), (17, 16), (4, 6), (2, 5), (6, 1)])
def test_aligns_as_adaptive_average_pooling_does(length, steps):
    x = torch.randn(3, length, 5, dtype=torch.float64)
    expected = F.adaptive_avg_pool1d(x[:, 1:].transpose(1, 2), steps).transpose(1, 2)
    torch.testing.assert_close(jmt.aligned(Tokens(x), steps), expected)
    padded = torch.cat([x, torch.full_like(x, 7.0)], dim=1)
    mask = (torch.arange(2 * length) < length).expand(3, -1)
    torch.testing.assert_close(jmt.aligned(Tokens(padded, mask), steps), expected)


def test_aligning_falls_back_on_the_class_token_and_then_on_zeros():
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    mask = torch.tensor([[True, False, False], [False, False, False]])
    steps = jmt.aligned(Tokens(x, mask), 2)
    torch.testing.assert_close(steps[0], x[0, :1].expand(2, -1))
    assert (steps[1] == 0).all()
    torch.testing.assert_close(jmt.aligned(Tokens(x[:, :1]), 2), x[:, :1].expand(-1, 2, -1))


@forms
def test_padding_has_no_influence(task_of, fusion_of, tokens_of, lite, readout):
    task = task_of(3)
    fusion = fusion_of("jmt", task, lite=lite, readout=readout, steps=3).double().eval()
    tokens = tokens_of(task, masked=True)
    spoiled = {m: dataclasses.replace(t, x=t.x + 9 * (~t.mask).unsqueeze(-1)) for m, t in tokens.items()}
    torch.testing.assert_close(fusion(spoiled).logits, fusion(tokens).logits, rtol=0, atol=1e-10)


@forms
def test_a_modality_without_a_valid_token_leaves_finite_logits_and_gradients(
    task_of, fusion_of, tokens_of, lite, readout
):
    task = task_of(2)
    fusion, tokens = fusion_of("jmt", task, lite=lite, readout=readout).double(), tokens_of(task)
    nothing = torch.zeros(tokens["audio"].x.shape[:2], dtype=torch.bool)
    output = fusion(tokens | {"audio": dataclasses.replace(tokens["audio"], mask=nothing)})
    output.logits.sum().backward()
    assert output.logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in fusion.parameters() if p.grad is not None)


@forms
def test_a_missing_modality_leaves_finite_logits(task_of, fusion_of, model_of, batch_of, lite, readout):
    task = task_of(3)
    model = model_of(fusion_of("jmt", task, lite=lite, readout=readout))
    inputs = batch_of(task, masked=True).inputs
    for m in task.modalities:
        assert model(inputs, frozenset({m})).logits.isfinite().all()


@pytest.mark.parametrize("count", [2, 3, 4])
def test_has_one_weight_set_per_querying_stream_and_a_slot_per_pair(task_of, fusion_of, tokens_of, count):
    task = task_of(count)
    fusion, tokens = fusion_of("jmt", task, steps=3).double().eval(), tokens_of(task)
    assert len(fusion.streams.cross) == len(fusion.streams.encoders) == count + 1
    slots: list[torch.Size] = []
    fusion.streams.pair_attention.register_forward_hook(lambda _, inputs, out: slots.append(inputs[1].shape))
    fusion(tokens)
    assert slots == [(4 * 3, count * (count + 1), 8)]


def test_the_pair_read_out_is_the_last_modalitys_with_the_joint_stream(task_of, fusion_of, tokens_of):
    task = task_of(2)
    fusion, tokens = fusion_of("jmt", task, steps=2).double().eval(), tokens_of(task)
    streams = fusion.streams
    seen: dict[str, torch.Tensor] = {}
    streams.pair_encoder.register_forward_pre_hook(lambda _, inputs: seen.update(pairs=inputs[0]))
    outputs = [[] for _ in streams.encoders]
    for kept, encoder in zip(outputs, streams.encoders, strict=True):
        encoder.register_forward_hook(lambda _, inputs, out, kept=kept: kept.append(out))
    fusion(tokens)
    (audio,), (visual,), (joint,) = outputs
    expected = [
        streams.cross[0](audio, visual),
        streams.cross[0](audio, joint),
        streams.cross[1](visual, audio),
        streams.cross[1](visual, joint),
        streams.cross[2](joint, audio),
        streams.cross[2](joint, visual),
    ]
    torch.testing.assert_close(seen["pairs"], torch.stack(expected, dim=2).flatten(0, 1))
    exchanged = streams.pair_encoder(seen["pairs"])
    whole = streams.pair_attention(exchanged, exchanged)[:, 3]  # every pair's row computed, one kept
    by_hand = fusion.head(whole.unflatten(0, (4, 2)).mean(dim=1))
    torch.testing.assert_close(fusion(tokens).logits, by_hand, rtol=0, atol=1e-12)


def test_the_lite_form_is_a_cross_attention_per_modality_and_a_linear_layer(task_of, fusion_of, tokens_of):
    task = task_of(2)
    fusion, tokens = fusion_of("jmt", task, lite=True).double().eval(), tokens_of(task)
    audio, visual = tokens["audio"].x, tokens["visual"].x
    cross = fusion.streams.cross
    pooled = [cross["audio"](audio, visual).mean(dim=1), cross["visual"](visual, audio).mean(dim=1)]
    torch.testing.assert_close(fusion(tokens).logits, fusion.head((pooled[0] + pooled[1]) / 2))


@pytest.mark.parametrize("lite", [False, True])
def test_reading_out_by_attention_gives_a_site_and_masses(task_of, fusion_of, tokens_of, lite):
    task = task_of(3)
    tokens = tokens_of(task)
    fusion = fusion_of("jmt", task, lite=lite, readout="attn").double().eval()
    output = fusion(tokens)
    assert list(fusion.sites()) == ["readout.site"]
    assert Capability.ATTENTION_SITE in fusion.provides(fusion.settings)
    assert list(output.auxiliary) == [f"attention_mass/{m}" for m in task.modalities]
    total = torch.stack(list(output.auxiliary.values())).sum(dim=0)
    assert ((total > 0.5) & (total < 1)).all()  # the class token keeps the rest
    plain = fusion_of("jmt", task, lite=lite)
    assert plain.sites() == {}
    assert Capability.ATTENTION_SITE not in plain.provides(plain.settings)


def test_needs_encoders_of_one_width(task_of, fusion_of):
    assert jmt.JMT.requires(jmt.JMT.Settings()) == {Capability.EQUAL_DIMS}
    with pytest.raises(ValueError, match="different widths"):
        fusion_of("jmt", task_of(dims=(8, 12)))
