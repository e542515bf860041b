"""V1 to V5, O4, the parts of O8 and O9 that concern the fusion, and the two forms of the attention."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench.api import Capability, Tokens


def orthogonal(dim, seed=5):
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64, generator=generator))
    return q


def build(fusion_of, task, **settings):
    """The fusion in float64 and evaluation mode, with biases that are not zero."""
    fusion = fusion_of("vanilla_mt", task, **settings).double().eval()
    for name, p in fusion.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(p)
    return fusion


def by_hand(fusion, tokens):
    """Attention weights [B, 1 + T] of the class token, and keys [B, 1 + T, D], from the definition."""
    attention = fusion.attention
    batch = next(iter(tokens.values())).x.shape[0]
    x = torch.cat([attention.class_token.expand(batch, 1, -1), *(t.x for t in tokens.values())], dim=1)
    keys = attention.key(x)
    query = attention.site.rotation @ attention.query(attention.class_token)
    masks = [torch.ones(batch, 1, dtype=torch.bool)]
    masks += [t.x.new_ones(t.x.shape[:2], dtype=torch.bool) if t.mask is None else t.mask for t in tokens.values()]
    scores = (keys @ query / math.sqrt(attention.dim)).masked_fill(~torch.cat(masks, dim=1), -math.inf)
    return scores.softmax(dim=1), keys, query


def test_a_zero_query_spreads_attention_evenly(task_of, fusion_of, tokens_of):
    task = task_of(2)
    fusion = fusion_of("vanilla_mt", task).double().eval()
    nn.init.zeros_(fusion.attention.query.weight)
    auxiliary = fusion(tokens_of(task, lengths=(6, 8))).auxiliary
    assert auxiliary["attention_mass/audio"].tolist() == pytest.approx([0.4] * 4)
    assert auxiliary["attention_mass/visual"].tolist() == pytest.approx([8 / 15] * 4)


@pytest.mark.parametrize("count", [2, 3])
def test_turning_query_and_keys_together_changes_nothing(task_of, fusion_of, tokens_of, count):
    task = task_of(count)
    fusion, tokens, turn = build(fusion_of, task), tokens_of(task), orthogonal(8)
    before = fusion(tokens).logits
    fusion.attention.site.rotate(turn)
    assert (fusion(tokens).logits - before).abs().max() > 1e-3
    with torch.no_grad():
        fusion.attention.key.weight.copy_(turn @ fusion.attention.key.weight)
        fusion.attention.key.bias.copy_(turn @ fusion.attention.key.bias)
    torch.testing.assert_close(fusion(tokens).logits, before, rtol=0, atol=1e-10)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rotated", [False, True])
def test_the_class_query_alone_equals_row_0_of_the_full_attention(
    task_of, fusion_of, tokens_of, count, masked, rotated
):
    task = task_of(count)
    fusion, tokens = build(fusion_of, task), tokens_of(task, masked=masked)
    if rotated:
        fusion.attention.site.rotate(orthogonal(8))
    inputs = {m: dataclasses.replace(t, x=t.x.requires_grad_()) for m, t in tokens.items()}
    wanted = [*fusion.parameters(), *(t.x for t in inputs.values())]
    found = []
    for full in (False, True):
        fusion.attention.full = full
        output = fusion(inputs)
        found.append((output, torch.autograd.grad(output.logits.sin().sum(), wanted)))
    (one, gradients), (other, full_gradients) = found
    torch.testing.assert_close(one.logits, other.logits, rtol=0, atol=1e-10)
    assert one.auxiliary.keys() == other.auxiliary.keys()
    for name, mass in one.auxiliary.items():
        torch.testing.assert_close(mass, other.auxiliary[name], rtol=0, atol=1e-10)
    for gradient, full_gradient in zip(gradients, full_gradients, strict=True):
        torch.testing.assert_close(gradient, full_gradient, rtol=0, atol=1e-10)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_all_keys_adds_up_to_one(task_of, fusion_of, tokens_of, masked, full):
    task = task_of(3)
    fusion, tokens = build(fusion_of, task), tokens_of(task, masked=masked)
    fusion.attention.full = full
    auxiliary = fusion(tokens).auxiliary
    weights, _, _ = by_hand(fusion, tokens)
    own, *parts = weights.split([1, *(t.x.shape[1] for t in tokens.values())], dim=1)
    for m, part in zip(task.modalities, parts, strict=True):
        torch.testing.assert_close(auxiliary[f"attention_mass/{m}"], part.sum(1), rtol=0, atol=1e-12)
    total = own[:, 0] + sum(auxiliary.values())
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)


def test_permuting_tokens_inside_a_modality_changes_nothing(task_of, fusion_of, tokens_of):
    task = task_of(2)
    fusion, tokens = build(fusion_of, task), tokens_of(task)
    order = torch.randperm(tokens["visual"].x.shape[1], generator=torch.Generator().manual_seed(1))
    shuffled = tokens | {"visual": Tokens(tokens["visual"].x[:, order])}
    torch.testing.assert_close(fusion(shuffled).logits, fusion(tokens).logits, rtol=0, atol=1e-12)


def test_padding_has_no_influence(task_of, fusion_of, tokens_of):
    task = task_of(3)
    fusion, tokens = build(fusion_of, task), tokens_of(task, masked=True)
    spoiled = {m: dataclasses.replace(t, x=t.x + 9 * (~t.mask).unsqueeze(-1)) for m, t in tokens.items()}
    torch.testing.assert_close(fusion(spoiled).logits, fusion(tokens).logits, rtol=0, atol=1e-12)


def test_a_modality_without_a_valid_token_gets_no_attention(task_of, fusion_of, tokens_of):
    task = task_of(2)
    fusion, tokens = build(fusion_of, task), tokens_of(task)
    nothing = torch.zeros(tokens["audio"].x.shape[:2], dtype=torch.bool)
    output = fusion(tokens | {"audio": dataclasses.replace(tokens["audio"], mask=nothing)})
    assert output.logits.isfinite().all()
    assert (output.auxiliary["attention_mass/audio"] == 0).all()


def test_has_2367750_parameters_at_the_size_of_table_4(task_of, fusion_of):
    fusion = fusion_of("vanilla_mt", task_of(2, dim=768, outputs=6))
    assert sum(p.numel() for p in fusion.parameters()) == 2_367_750


def test_sum_of_logits_is_length_times_cosine_with_the_mean_key():
    query = torch.tensor([1.0, 2.0, 0.0, -1.0])
    keys = torch.tensor([[1.0, 0.0, 2.0, 1.0], [3.0, 1.0, 0.0, 0.0], [0.0, 2.0, 1.0, -1.0]])
    logits, mean = keys @ query / 2, keys.mean(dim=0)
    cosine = torch.cosine_similarity(query, mean, dim=0)
    assert logits.tolist() == [0.0, 2.5, 2.5]
    assert [query.norm().item(), mean.norm().item(), cosine.item()] == pytest.approx([2.449490, 1.943651, 0.700140])
    assert (3 / 2 * query.norm() * mean.norm() * cosine).item() == pytest.approx(5.0)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_the_site_shows_the_query_and_the_mean_keys(task_of, fusion_of, tokens_of, masked, full):
    task = task_of(3)
    fusion, tokens = build(fusion_of, task), tokens_of(task, masked=masked)
    fusion.attention.site.rotate(orthogonal(8))
    fusion.attention.full = full
    seen = []
    fusion.attention.site.tap = seen.append
    fusion(tokens)
    weights, keys, query = by_hand(fusion, tokens)
    (sample,) = seen
    torch.testing.assert_close(sample.query, query.expand(4, -1), rtol=0, atol=1e-12)
    assert (sample.query == sample.query[0]).all()  # one query for all samples
    start, valid = 1, {m: t.x.new_ones(t.x.shape[:2]) if t.mask is None else t.mask for m, t in tokens.items()}
    total = 1 + sum(v.sum(1) for v in valid.values())
    for m, t in tokens.items():
        own = keys[:, start : start + t.x.shape[1]] * valid[m].unsqueeze(-1)
        count = valid[m].sum(1)
        torch.testing.assert_close(sample.mean_keys[m], own.sum(1) / count.unsqueeze(-1), rtol=0, atol=1e-12)
        torch.testing.assert_close(sample.mass[m], weights[:, start : start + t.x.shape[1]].sum(1))
        torch.testing.assert_close(sample.base_rate[m].double(), (count / total).double())
        start += t.x.shape[1]


def test_only_the_class_query_is_rotated(task_of, fusion_of, tokens_of):
    task = task_of(2)
    fusion, tokens = build(fusion_of, task), tokens_of(task)
    seen = []
    fusion.attention.site.tap = seen.append
    fusion(tokens)
    fusion.attention.site.rotate(orthogonal(8))
    fusion(tokens)
    before, after = seen
    torch.testing.assert_close(after.query, before.query @ orthogonal(8).T, rtol=0, atol=1e-6)
    assert all(torch.equal(after.mean_keys[m], before.mean_keys[m]) for m in task.modalities)


def test_a_saved_and_loaded_model_stays_rotated(task_of, fusion_of, tokens_of):
    task = task_of(2)
    fusion, tokens = build(fusion_of, task), tokens_of(task)
    fusion.attention.site.rotate(orthogonal(8))
    loaded = fusion_of("vanilla_mt", task).double().eval()
    loaded.load_state_dict(fusion.state_dict())
    assert torch.equal(loaded(tokens).logits, fusion(tokens).logits)
    assert loaded.attention.site.num_rotations == 1


def test_a_rotation_can_be_folded_into_the_query(task_of, fusion_of, tokens_of):
    task = task_of(2)
    fusion, tokens, turn = build(fusion_of, task), tokens_of(task), orthogonal(8)
    fusion.attention.site.rotate(turn)
    rotated = fusion(tokens).logits
    with torch.no_grad():
        fusion.attention.query.weight.copy_(turn @ fusion.attention.query.weight)
        fusion.attention.query.bias.copy_(turn @ fusion.attention.query.bias)
        fusion.attention.site.rotation.copy_(torch.eye(8))
    torch.testing.assert_close(fusion(tokens).logits, rotated, rtol=0, atol=1e-12)


def test_flops_of_the_full_form_are_the_published_ones(task_of, fusion_of):
    task = task_of(2, dim=768, outputs=6)
    with torch.device("meta"):
        fusion = fusion_of("vanilla_mt", task).eval()
        tokens = {"audio": Tokens(torch.empty(1, 177, 768)), "visual": Tokens(torch.empty(1, 197, 768))}
        counted = {}
        for full in (True, False):
            fusion.attention.full = full
            with FlopCounterMode(display=False) as counter:
                fusion(tokens)
            counted[full] = counter.get_total_flops()
    rotation, head = 2 * 768**2, 2 * 768 * 6
    assert counted[True] == 2 * 884_736_000 + 4 * 768 * 375**2 + rotation + head
    assert counted[False] < counted[True] / 300


def test_dropout_acts_in_training_only(task_of, fusion_of, tokens_of):
    task = task_of(2)
    fusion, tokens = fusion_of("vanilla_mt", task, dropout=0.5).double(), tokens_of(task)
    assert not torch.equal(fusion(tokens).logits, fusion(tokens).logits)
    assert torch.equal(fusion.eval()(tokens).logits, fusion(tokens).logits)


@pytest.mark.parametrize("count", [2, 3])
def test_learns_everywhere_but_in_the_key_bias(task_of, fusion_of, model_of, batch_of, live_parameters, count):
    task = task_of(count)
    model, batch = model_of(fusion_of("vanilla_mt", task)), batch_of(task, masked=True)
    losses = model.fusion.terms(model(batch.inputs), batch)
    names = {n for n, _ in model.fusion.named_parameters(prefix="fusion")}
    assert names - live_parameters(model, losses.values()) == {"fusion.attention.key.bias"}
    assert set(model.fusion.dead_parameters) == {"*.key.bias"}


def test_a_missing_modality_leaves_finite_logits(task_of, fusion_of, model_of, batch_of):
    task = task_of(3)
    model, inputs = model_of(fusion_of("vanilla_mt", task)), batch_of(task, masked=True).inputs
    for m in task.modalities:
        assert model(inputs, frozenset({m})).logits.isfinite().all()


def test_offers_one_site_and_asks_for_equal_widths(task_of, fusion_of):
    fusion = fusion_of("vanilla_mt", task_of(2))
    assert list(fusion.sites()) == ["attention.site"]
    assert Capability.ATTENTION_SITE in fusion.provides(fusion.settings)
    assert fusion.requires(fusion.settings) == {Capability.EQUAL_DIMS}
