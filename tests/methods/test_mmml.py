"""M1 to M4 of the specification, the count behind Table 4, and the two read-outs."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bench.api import Capability, Tokens


def test_has_the_parameters_and_multiplications_of_table_4(task_of, fusion_of):
    task = task_of(2, dim=768, outputs=6)
    with torch.device("meta"):
        fusion = fusion_of("mmml", task).eval()
        tokens = {"audio": Tokens(torch.empty(1, 177, 768)), "visual": Tokens(torch.empty(1, 197, 768))}
        with FlopCounterMode(display=False) as counter:
            fusion(tokens)
    assert sum(p.numel() for p in fusion.layers.parameters()) == 18_903_552
    assert 57_494_016 + sum(p.numel() for p in fusion.parameters()) == 77_884_818
    assert fusion.layers[0]["audio"].cross.heads == 12
    operators = counter.get_flop_counts()["Global"]
    linear = sum(n for operator, n in operators.items() if operator in (torch.ops.aten.addmm, torch.ops.aten.mm))
    norms = 4 * 3 * (177 + 197) * 768  # as thop counts them
    assert round(128e-9 * (10_749_069_312 + linear / 2 + norms), 4) == 1828.2892


def test_a_unimodal_loss_reaches_its_own_encoder_and_head_only(task_of, fusion_of, model_of, batch_of, live_parameters):
    task = task_of(3)
    model, batch = model_of(fusion_of("mmml", task)), batch_of(task)
    loss = model.fusion.terms(model(batch.inputs), batch)["unimodal/audio"]
    live = live_parameters(model, [loss])
    assert {name.rsplit(".", 1)[0] for name in live if name.startswith("fusion")} == {"fusion.unimodal_heads.audio"}
    assert {name.split(".")[1] for name in live if name.startswith("encoders")} == {"audio"}
    joint = live_parameters(model, [model.fusion.terms(model(batch.inputs), batch)["joint"]])
    assert {name.split(".")[1] for name in joint if name.startswith("encoders")} == set(task.modalities)
    assert not any("unimodal" in name for name in joint)


def test_without_weight_the_gradient_is_that_of_the_joint_loss(task_of, fusion_of, model_of, batch_of):
    task = task_of(2)
    weighted = model_of(fusion_of("mmml", task, dropout=0.0))
    alone = model_of(fusion_of("mmml", task, dropout=0.0, unimodal_weight=0.0))
    alone.load_state_dict({n: p for n, p in weighted.state_dict().items() if "unimodal" not in n})
    batch = batch_of(task)
    terms = alone.fusion.terms(alone(batch.inputs), batch)
    assert set(terms) == {"joint"}
    terms["joint"].backward()
    weighted.fusion.terms(weighted(batch.inputs), batch)["joint"].backward()
    other = dict(weighted.named_parameters())
    for name, p in alone.named_parameters():
        torch.testing.assert_close(p.grad, other[name].grad, rtol=0, atol=1e-12)


def test_loss_terms_carry_their_weight(task_of, fusion_of, model_of, batch_of):
    task = task_of(2)
    model, batch = model_of(fusion_of("mmml", task, unimodal_weight=2.5)), batch_of(task)
    output = model(batch.inputs)
    terms = model.fusion.terms(output, batch)
    assert list(terms) == ["joint", "unimodal/audio", "unimodal/visual"]
    for m in task.modalities:
        expected = 2.5 * F.cross_entropy(output.unimodal["head"][m], batch.target)
        torch.testing.assert_close(terms[f"unimodal/{m}"], expected)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_all_modalities_read_the_tokens_from_before_the_layer(task_of, fusion_of, tokens_of, count, masked):
    task = task_of(count)
    fusion, tokens = fusion_of("mmml", task).double().eval(), tokens_of(task, masked=masked)
    backwards = {m: tokens[m] for m in reversed(task.modalities)}
    torch.testing.assert_close(fusion(backwards).logits, fusion(tokens).logits, rtol=0, atol=1e-12)
    fused = fusion.exchange(tokens)
    for m in task.modalities:
        others = torch.cat([tokens[n].x for n in task.modalities if n != m], dim=1)
        mask = torch.cat([tokens[n].mask for n in task.modalities if n != m], dim=1) if masked else None
        part = fusion.layers[0][m]
        x = part.norm_cross(tokens[m].x + part.cross(tokens[m].x, others, mask))
        x = part.norm_own(x + part.own(x, x, tokens[m].mask))
        torch.testing.assert_close(fused[m].x, part.norm_mlp(x + part.mlp(x)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("readout", ["mlp", "attn"])
@pytest.mark.parametrize("class_token", ["encoder", "fresh"])
def test_padding_has_no_influence(task_of, fusion_of, tokens_of, readout, class_token):
    task = task_of(3)
    fusion = fusion_of("mmml", task, layers=2, readout=readout, class_token=class_token).double().eval()
    tokens = tokens_of(task, masked=True)
    spoiled = {m: dataclasses.replace(t, x=t.x + 9 * (~t.mask).unsqueeze(-1)) for m, t in tokens.items()}
    torch.testing.assert_close(fusion(spoiled).logits, fusion(tokens).logits, rtol=0, atol=1e-10)


@pytest.mark.parametrize("readout", ["mlp", "attn"])
def test_contexts_without_a_valid_token_leave_finite_logits_and_gradients(task_of, fusion_of, tokens_of, readout):
    task = task_of(2)
    fusion, tokens = fusion_of("mmml", task, readout=readout).double(), tokens_of(task)
    nothing = torch.zeros(tokens["audio"].x.shape[:2], dtype=torch.bool)
    output = fusion(tokens | {"audio": dataclasses.replace(tokens["audio"], mask=nothing)})
    output.logits.sum().backward()
    assert output.logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in fusion.parameters() if p.grad is not None)


def test_reading_out_by_attention_gives_a_site_and_masses(task_of, fusion_of, tokens_of):
    task = task_of(3)
    tokens = tokens_of(task)
    fusion = fusion_of("mmml", task, readout="attn").double().eval()
    output = fusion(tokens)
    assert list(fusion.sites()) == ["readout.site"]
    assert Capability.ATTENTION_SITE in fusion.provides(fusion.settings)
    assert list(output.auxiliary) == [f"attention_mass/{m}" for m in task.modalities]
    torch.testing.assert_close(output.logits, fusion.head(fusion.readout(fusion.exchange(tokens))[0]))
    plain = fusion_of("mmml", task).double()
    assert plain.sites() == {}
    assert plain(tokens).auxiliary == {}
    assert Capability.ATTENTION_SITE not in plain.provides(plain.settings)


def test_a_fresh_class_token_takes_the_place_of_the_encoders(task_of, fusion_of, tokens_of):
    task = task_of(2)
    fusion, tokens = fusion_of("mmml", task, class_token="fresh").double().eval(), tokens_of(task, masked=True)
    fused = fusion.exchange(tokens)
    assert {m: t.x.shape[1] for m, t in fused.items()} == {m: t.x.shape[1] + 1 for m, t in tokens.items()}
    assert all(t.mask[:, 0].all() and t.has_class_token for t in fused.values())
    output = fusion(tokens)
    torch.testing.assert_close(output.features["audio"], tokens["audio"].pooled)  # from before the fusion
    without = fusion_of("mmml", task)
    extra = {n for n, _ in fusion.named_parameters()} - {n for n, _ in without.named_parameters()}
    assert extra == {"class_tokens.audio", "class_tokens.visual"}


@pytest.mark.parametrize("readout", ["mlp", "attn"])
@pytest.mark.parametrize("class_token", ["encoder", "fresh"])
def test_learns_everywhere_but_in_the_key_biases(
    task_of, fusion_of, model_of, batch_of, live_parameters, readout, class_token
):
    task = task_of(3)
    fusion = fusion_of("mmml", task, layers=2, readout=readout, class_token=class_token, dropout=0.0)
    model, batch = model_of(fusion), batch_of(task, masked=True)
    losses = fusion.terms(model(batch.inputs), batch)
    names = {n for n, _ in fusion.named_parameters(prefix="fusion")}
    dead = {n for n in names if n.endswith("key.bias")}
    assert names - live_parameters(model, losses.values()) == dead
    assert set(fusion.dead_parameters) == {"*.key.bias"}


@pytest.mark.parametrize(("dim", "heads"), [(768, 12), (64, 1), (120, 1), (200, 2), (8, 1)])
def test_heads_fit_the_width(task_of, fusion_of, dim, heads):
    with torch.device("meta"):
        fusion = fusion_of("mmml", task_of(2, dim=dim))
    assert fusion.layers[0]["audio"].cross.heads == heads


def test_heads_that_do_not_fit_are_refused(task_of, fusion_of):
    with pytest.raises(ValueError, match="width 64 is no multiple of 12 heads"):
        fusion_of("mmml", task_of(2, dim=64), heads=12)


def test_regression_uses_the_absolute_error(task_of, fusion_of, model_of, batch_of):
    task = task_of(2, outputs=1, kind="regression")
    model, batch = model_of(fusion_of("mmml", task)), batch_of(task)
    output = model(batch.inputs)
    terms = model.fusion.terms(output, batch)
    expected = (output.unimodal["head"]["audio"][:, 0] - batch.target).abs().mean()
    torch.testing.assert_close(terms["unimodal/audio"], expected)


@pytest.mark.parametrize("readout", ["mlp", "attn"])
def test_a_missing_modality_leaves_finite_logits(task_of, fusion_of, model_of, batch_of, readout):
    task = task_of(3)
    model, inputs = model_of(fusion_of("mmml", task, readout=readout)), batch_of(task, masked=True).inputs
    for m in task.modalities:
        assert model(inputs, frozenset({m})).logits.isfinite().all()


def test_trained_heads_are_offered_unless_their_loss_has_no_weight(task_of, fusion_of, tokens_of):
    task = task_of(2)
    for weight in (1.0, 0.0):
        fusion = fusion_of("mmml", task, unimodal_weight=weight).double()
        offered = Capability.UNIMODAL_HEADS in fusion.provides(fusion.settings)
        assert offered is bool(weight)
        assert ("head" in fusion(tokens_of(task)).unimodal) is offered
