"""B1 to B3 and B5 of the specification, the count behind Table 4, and the three heads."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from bench.api import Capability


def test_has_the_parameters_of_table_4_above_the_encoders(task_of, fusion_of):
    with torch.device("meta"):
        fusion = fusion_of("mbt", task_of(2, dim=768, outputs=6))
    assert sum(p.numel() for p in fusion.parameters()) == 8 * 7_087_872 + 4_614 + 2 * 768
    counted_by_thop = sum(p.numel() for n, p in fusion.named_parameters() if n != "bottleneck")
    encoders, probes = 57_494_016, 2 * 4_614
    assert round((encoders + counted_by_thop + probes) / 1e6, 2) == 114.21


@pytest.mark.parametrize(("layers", "reaches"), [(1, False), (2, True)])
def test_exchange_needs_a_second_layer(task_of, fusion_of, tokens_of, layers, reaches):
    task = task_of(2)
    fusion = fusion_of("mbt", task, layers=layers).double()
    tokens, other = tokens_of(task), tokens_of(task, seed=9)
    visual = [fusion.exchange(t)["visual"].x for t in (tokens, tokens | {"audio": other["audio"]})]
    assert torch.equal(*visual) is not reaches


@pytest.mark.parametrize("masked", [False, True])
def test_the_order_of_modalities_does_not_matter(task_of, fusion_of, tokens_of, masked):
    task = task_of(3)
    fusion, tokens = fusion_of("mbt", task).double(), tokens_of(task, masked=masked)
    backwards = {m: tokens[m] for m in reversed(task.modalities)}
    one, other = (fusion(fusion.exchange(t)).logits for t in (tokens, backwards))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("count", [2, 3])
def test_without_layers_it_is_the_mean_of_unimodal_logits(task_of, fusion_of, model_of, batch_of, count):
    task = task_of(count)
    fusion = fusion_of("mbt", task, layers=0)
    model, inputs = model_of(fusion), batch_of(task, masked=True).inputs
    pooled = [model.encoders[m](inputs.values[m], inputs.masks[m]).pooled for m in task.modalities]
    mean = torch.stack([fusion.head(z) for z in pooled]).mean(0)
    torch.testing.assert_close(model(inputs).logits, mean, rtol=0, atol=1e-12)
    assert sum(p.numel() for p in fusion.parameters()) == 8 * 3 + 3


@pytest.mark.parametrize("count", [2, 3])
def test_the_next_bottleneck_is_the_mean_of_what_the_modalities_wrote(task_of, fusion_of, tokens_of, count):
    task = task_of(count)
    fusion, tokens = fusion_of("mbt", task, layers=2, tokens=3, heads=2).double(), tokens_of(task, batch=2)
    state = {m: t.x for m, t in tokens.items()}
    bottleneck = fusion.bottleneck.expand(2, -1, -1)
    for layer in range(2):
        both = {m: fusion.blocks[m][layer](torch.cat([x, bottleneck], dim=1)) for m, x in state.items()}
        state = {m: x[:, :-3] for m, x in both.items()}
        bottleneck = sum(x[:, -3:] for x in both.values()) / count
    for m, t in fusion.exchange(tokens).items():
        torch.testing.assert_close(t.x, state[m], rtol=0, atol=1e-12)


def test_what_the_last_layer_writes_gets_no_gradient(task_of, fusion_of, tokens_of):
    task = task_of(2)
    fusion, seen = fusion_of("mbt", task, layers=2).double(), {}

    def keep(layer):
        def hook(_module, _inputs, output):
            output.retain_grad()
            seen[layer] = output

        return hook

    for layer, block in enumerate(fusion.blocks["audio"]):
        block.register_forward_hook(keep(layer))
    fusion(fusion.exchange(tokens_of(task))).logits.sum().backward()
    assert seen[0].grad[:, -2:].abs().min() > 0
    assert (seen[1].grad[:, -2:] == 0).all()


def test_padding_has_no_influence(task_of, fusion_of, tokens_of):
    task = task_of(3)
    fusion, tokens = fusion_of("mbt", task).double(), tokens_of(task, masked=True)
    spoiled = {m: dataclasses.replace(t, x=t.x + 9 * (~t.mask).unsqueeze(-1)) for m, t in tokens.items()}
    one, other = (fusion(fusion.exchange(t)).logits for t in (tokens, spoiled))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("count", [2, 3])
def test_the_authors_head_starts_at_zero_and_averages_losses(task_of, fusion_of, model_of, batch_of, count):
    task = task_of(count)
    fusion = fusion_of("mbt", task, head="token")
    model, batch = model_of(fusion), batch_of(task)
    assert (model(batch.inputs).logits == 0).all()
    torch.nn.init.normal_(fusion.head.weight)
    output = model(batch.inputs)
    heads = output.unimodal["head"]
    torch.testing.assert_close(output.logits, sum(heads.values()) / count)
    losses = torch.stack([F.cross_entropy(u, batch.target) for u in heads.values()])
    torch.testing.assert_close(sum(fusion.terms(output, batch).values()), losses.mean())


def test_what_each_head_offers(task_of, fusion_of, tokens_of):
    task = task_of(3)
    offers = {}
    for head in ("mean", "token", "concat"):
        fusion = fusion_of("mbt", task, head=head, layers=1).double()
        output = fusion(tokens_of(task))
        assert output.logits.shape == (4, 3)
        offers[head] = fusion.provides(fusion.settings)
        assert ("head" in output.unimodal) is (Capability.UNIMODAL_HEADS in offers[head])
    assert Capability.UNIMODAL_HEADS in offers["token"]
    assert Capability.JOINT_LOGITS not in offers["token"]
    assert offers["mean"] == offers["concat"]
    assert Capability.JOINT_LOGITS in offers["mean"]
    assert Capability.UNIMODAL_HEADS not in offers["mean"]


def test_concat_reads_all_class_tokens(task_of, fusion_of, tokens_of):
    task = task_of(2)
    fusion, tokens = fusion_of("mbt", task, head="concat", layers=0).double(), tokens_of(task)
    both = torch.cat([tokens["audio"].x[:, 0], tokens["visual"].x[:, 0]], dim=1)
    torch.testing.assert_close(fusion(tokens).logits, fusion.head(both))


@pytest.mark.parametrize("head", ["mean", "concat"])
@pytest.mark.parametrize("layers", [1, 2])
def test_learns_everywhere(task_of, fusion_of, model_of, batch_of, live_parameters, head, layers):
    task = task_of(3)
    model, batch = model_of(fusion_of("mbt", task, head=head, layers=layers)), batch_of(task, masked=True)
    losses = model.fusion.terms(model(batch.inputs), batch)
    names = {n for n, _ in model.fusion.named_parameters(prefix="fusion")}
    assert names <= live_parameters(model, losses.values())
    assert model.fusion.dead_parameters == {}


def test_a_branch_holds_its_bottleneck_blocks_and_no_other(task_of, fusion_of, model_of):
    model = model_of(fusion_of("mbt", task_of(2)))
    branches = {m: {id(p) for p in model.branch(m)} for m in ("audio", "visual")}
    assert not branches["audio"] & branches["visual"]
    shared = {n for n, p in model.named_parameters() if id(p) not in branches["audio"] | branches["visual"]}
    assert shared == {"fusion.bottleneck", "fusion.head.weight", "fusion.head.bias"}


def test_a_missing_modality_leaves_finite_logits(task_of, fusion_of, model_of, batch_of):
    task = task_of(3)
    model, inputs = model_of(fusion_of("mbt", task)), batch_of(task, masked=True).inputs
    for m in task.modalities:
        assert model(inputs, frozenset({m})).logits.isfinite().all()


def test_heads_that_do_not_fit_are_refused(task_of, fusion_of):
    with pytest.raises(ValueError, match="heads=3 does not divide the token width 8"):
        fusion_of("mbt", task_of(2), heads=3)
