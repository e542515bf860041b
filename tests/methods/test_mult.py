"""T1 to T4 of the specification, padding, both read-outs, and the released code's mask."""

from __future__ import annotations

import dataclasses
import importlib

import pytest
import torch
from torch import nn

from bench.api import Capability, Tokens

mult = importlib.import_module("bench.plugins.methods.mult")

READOUTS = pytest.mark.parametrize("readout", ["mlp", "attn"])


def build(fusion_of, task, **settings):
    """The fusion in float64 and evaluation mode."""
    return fusion_of("mult", task, **{"layers": 2, **settings}).double().eval()


def other(x):
    """Other values, by no shift that a norm would take out again."""
    return x.flip(-1) * torch.arange(1.0, 1 + x.shape[-1], dtype=x.dtype)


def spoiled(tokens):
    """The same tokens with other values in the padding."""
    return {m: dataclasses.replace(t, x=t.x.where(t.mask.unsqueeze(-1), other(t.x))) for m, t in tokens.items()}


def test_the_released_mask_by_hand():
    assert mult.allowed_keys(2, 4).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert mult.allowed_keys(4, 2).all()
    assert mult.allowed_keys(3, 3).int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


def test_a_source_of_zeros_leaves_the_mlps_of_the_target(task_of, fusion_of, tokens_of):
    task = task_of(2)
    fusion, tokens = build(fusion_of, task), tokens_of(task)
    stack = fusion.crossmodal["audio"]["visual"]
    nothing = Tokens(torch.zeros_like(tokens["visual"].x))
    x = tokens["audio"].x
    for layer in stack.layers:
        x = x + layer.mlp(layer.norm_mlp(x))
    torch.testing.assert_close(stack(tokens["audio"], nothing), stack.norm(x), rtol=0, atol=1e-12)
    assert (stack(tokens["audio"], tokens["visual"]) - stack.norm(x)).abs().max() > 1e-3


@pytest.mark.parametrize(("count", "stacks", "width"), [(2, 2, 8), (3, 6, 16)])
def test_there_is_a_stack_per_ordered_pair_and_their_widths_add_up(task_of, fusion_of, tokens_of, count, stacks, width):
    task = task_of(count)
    fusion, tokens = build(fusion_of, task), tokens_of(task)
    assert sum(len(sources) for sources in fusion.crossmodal.values()) == stacks
    assert all(m not in sources for m, sources in fusion.crossmodal.items())
    fused = fusion.fused(tokens)
    assert {m: tuple(t.x.shape) for m, t in fused.items()} == {m: (4, t.x.shape[1], width) for m, t in tokens.items()}
    assert fusion.head[1].in_features == count * width


def test_without_crossmodal_layers_a_modality_reads_no_other(task_of, fusion_of, tokens_of):
    task = task_of(3)
    tokens = tokens_of(task)
    changed = tokens | {"visual": Tokens(other(tokens["visual"].x))}
    for layers, reads in ((0, False), (1, True)):
        fusion = build(fusion_of, task, layers=layers)
        before, after = fusion.fused(tokens), fusion.fused(changed)
        assert (not torch.allclose(before["audio"].x, after["audio"].x)) is reads
        assert not torch.allclose(before["visual"].x, after["visual"].x)


def test_the_source_stays_as_it_was_in_every_layer(task_of, fusion_of, tokens_of):
    task = task_of(2)
    fusion, tokens = build(fusion_of, task, layers=3), tokens_of(task, masked=True)
    stack = fusion.crossmodal["visual"]["audio"]
    x, source = tokens["visual"].x, tokens["audio"]
    for layer in stack.layers:
        x = x + layer.attention(layer.norm_attention(x), layer.norm_attention(source.x), source.mask)
        x = x + layer.mlp(layer.norm_mlp(x))
    torch.testing.assert_close(stack(tokens["visual"], source), stack.norm(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("layers", "memory"), [(0, 3), (1, 3), (4, 4)])
def test_what_was_read_is_remembered_by_at_least_three_layers(task_of, fusion_of, layers, memory):
    fusion = fusion_of("mult", task_of(2), layers=layers)
    assert {len(stack.layers) for stack in fusion.memories.values()} == {memory}


@READOUTS
@pytest.mark.parametrize("causal", [False, True])
def test_padding_has_no_influence(task_of, fusion_of, tokens_of, readout, causal):
    task = task_of(3)
    fusion, tokens = build(fusion_of, task, readout=readout, causal=causal), tokens_of(task, masked=True)
    torch.testing.assert_close(fusion(spoiled(tokens)).logits, fusion(tokens).logits, rtol=0, atol=1e-10)


@READOUTS
@pytest.mark.parametrize("causal", [False, True])
def test_a_modality_without_a_valid_token_leaves_finite_logits(task_of, fusion_of, tokens_of, readout, causal):
    task = task_of(2)
    fusion, tokens = build(fusion_of, task, readout=readout, causal=causal), tokens_of(task)
    nothing = torch.zeros(tokens["audio"].x.shape[:2], dtype=torch.bool)
    output = fusion(tokens | {"audio": dataclasses.replace(tokens["audio"], mask=nothing)})
    output.logits.sum().backward()
    assert output.logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in fusion.parameters() if p.grad is not None)


def test_by_the_released_mask_the_first_token_of_equal_lengths_sees_no_later_one(task_of, fusion_of, tokens_of):
    task = task_of(2)
    tokens = tokens_of(task, lengths=(5, 5))
    later = {m: Tokens(torch.cat([t.x[:, :1], other(t.x[:, 1:])], dim=1)) for m, t in tokens.items()}
    for causal in (False, True):
        fusion = build(fusion_of, task, causal=causal)
        firsts = [fusion.fused(t)["audio"].x[:, 0] for t in (tokens, later)]
        assert torch.allclose(*firsts, atol=1e-12) is causal


def test_by_the_released_mask_the_last_valid_token_is_read_out():
    x = torch.arange(12.0).reshape(2, 3, 2)
    assert mult._last(Tokens(x)).tolist() == [[4.0, 5.0], [10.0, 11.0]]
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert mult._last(Tokens(x, mask)).tolist() == [[2.0, 3.0], [6.0, 7.0]]


def test_a_sample_has_no_influence_on_another(task_of, fusion_of, tokens_of):
    task = task_of(2)
    fusion, tokens = build(fusion_of, task), tokens_of(task, masked=True)
    changed = {m: dataclasses.replace(t, x=t.x.clone()) for m, t in tokens.items()}
    for t in changed.values():
        t.x[1] = other(t.x[1])
    moved = (fusion(changed).logits - fusion(tokens).logits).abs().amax(dim=1)
    assert moved[1] > 1e-3
    assert moved[[0, 2, 3]].max() < 1e-12


def test_reading_out_by_attention_gives_one_shared_query_over_all_modalities(task_of, fusion_of, tokens_of):
    task = task_of(3)
    fusion, tokens = build(fusion_of, task, readout="attn"), tokens_of(task)
    assert list(fusion.sites()) == ["readout.site"]
    offered = fusion.provides(fusion.settings)
    assert {Capability.ATTENTION_SITE, Capability.SHARED_QUERY} <= offered
    output = fusion(tokens)
    assert list(output.auxiliary) == [f"attention_mass/{m}" for m in task.modalities]
    before = output.logits
    fusion.sites()["readout.site"].rotate(-torch.eye(16))
    assert (fusion(tokens).logits - before).abs().max() > 1e-6
    plain = fusion_of("mult", task)
    assert plain.sites() == {}
    assert not {Capability.ATTENTION_SITE, Capability.SHARED_QUERY} & plain.provides(plain.settings)


@READOUTS
def test_learns_everywhere_but_in_the_key_biases(task_of, fusion_of, model_of, batch_of, live_parameters, readout):
    task = task_of(3)
    fusion = fusion_of("mult", task, layers=1, readout=readout, dropout=0.0)
    model, batch = model_of(fusion), batch_of(task, masked=True)
    losses = fusion.terms(model(batch.inputs), batch)
    names = {n for n, _ in fusion.named_parameters(prefix="fusion")}
    dead = {n for n in names if n.endswith("key.bias")}
    assert names - live_parameters(model, losses.values()) == dead
    assert set(fusion.dead_parameters) == {"*.key.bias"}


def test_dropout_acts_in_training_only(task_of, fusion_of, tokens_of):
    task = task_of(2)
    fusion, tokens = build(fusion_of, task, dropout=0.5), tokens_of(task)
    assert torch.equal(fusion(tokens).logits, fusion(tokens).logits)
    fusion.train()
    assert not torch.equal(fusion(tokens).logits, fusion(tokens).logits)


def test_heads_that_do_not_fit_are_refused(task_of, fusion_of):
    with pytest.raises(ValueError, match="width 8 is no multiple of 3 heads"):
        fusion_of("mult", task_of(2), heads=3)


def test_a_regression_has_one_output(task_of, fusion_of, model_of, batch_of):
    task = task_of(2, outputs=1, kind="regression")
    model, batch = model_of(fusion_of("mult", task, layers=1)), batch_of(task)
    terms = model.fusion.terms(model(batch.inputs), batch)
    assert nn.functional.l1_loss(model(batch.inputs).logits[:, 0], batch.target).isfinite()
    assert terms["joint"].isfinite()
