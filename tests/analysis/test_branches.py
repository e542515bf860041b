"""Oracle O11: the closed form of the gradient at an attention is what autograd finds, to rounding in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench import encoders, names
from bench.analysis.attended import attentions, observed
from bench.analysis.branches import closed_form, gradients
from bench.api import Batch, EncoderSpec, Inputs, Model, TaskSpec, Tokens
from bench.layers import ClassTokenAttention

MODALITIES = ("audio", "visual", "text")


def model_of(text: str, modalities: tuple[str, ...] = ("audio", "visual")) -> Model:
    """A fresh model in float64 whose sites are rotated, in evaluation mode."""
    torch.manual_seed(0)
    spec = EncoderSpec("sequence", dim=8, depth=1, heads=2)
    task = TaskSpec(modalities, dict.fromkeys(modalities, 8), 3, 100)
    part = names.resolve_method(text, modalities).base
    fusion = part.plugin(part.settings, task)
    model = Model({m: encoders.build(spec, (5, 4)) for m in modalities}, fusion, {}).double().eval()
    for site in fusion.sites().values():
        width = site.dim // site.heads
        turns = [torch.linalg.qr(torch.randn(width, width, dtype=torch.float64)).Q for _ in range(site.heads)]
        site.rotate(torch.block_diag(*turns))
    return model


def batch_of(modalities: tuple[str, ...] = ("audio", "visual"), masked: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(1)
    values = {m: torch.randn(6, 5, 4, dtype=torch.float64, generator=generator) for m in modalities}
    mask = torch.arange(5) < torch.randint(1, 6, (6, 1), generator=generator)
    masks: dict[str, Any] = dict.fromkeys(modalities, mask) if masked else {}
    return Batch(Inputs(values, masks), torch.arange(6) % 3, torch.arange(6))


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize(
    ("text", "modalities"),
    [
        ("vanilla_mt", MODALITIES[:2]),
        ("vanilla_mt:heads=2", MODALITIES),
        ("vanilla_mt:layers=3:heads=4", MODALITIES[:2]),
        ("mmml:readout=attn", MODALITIES[:2]),
        ("mult:layers=1:heads=2:readout=attn", MODALITIES[:2]),
        ("jmt:steps=4:readout=attn", MODALITIES),
    ],
)
def test_the_closed_form_is_the_gradient(text, modalities, masked):
    model, batch = model_of(text, modalities), batch_of(modalities, masked)
    found = gradients(model, batch)
    assert len(found.sites) == len(model.fusion.sites())
    assert found.error is not None
    assert found.error < 1e-10


@pytest.mark.parametrize(("heads", "learned"), [(1, True), (4, True), (1, False), (2, False)])
def test_both_parts_by_their_definition(heads, learned):
    """The value part is the gradient with the weights held, the key part that with the values held."""
    torch.manual_seed(3)
    attention = ClassTokenAttention(8, heads=heads, learned=learned).double().eval()
    x = {m: torch.randn(4, n, 8, dtype=torch.float64, requires_grad=True) for m, n in (("audio", 3), ("visual", 5))}
    own = None if learned else torch.randn(4, 8, dtype=torch.float64)
    g = torch.randn(4, 8, dtype=torch.float64)
    given = (attention,)
    with observed(torch.nn.ModuleList(given)) as seen:
        attention({m: Tokens(t, has_class_token=False) for m, t in x.items()}, *(() if own is None else (own,)))
    attended = seen["0"]
    terms = closed_form(attended, g)

    token = attention.class_token.expand(4, 8) if own is None else own
    everything = torch.cat([token.unsqueeze(1), *x.values()], dim=1)
    keys, values = (
        part(everything).unflatten(2, (heads, -1)).transpose(1, 2) for part in (attention.key, attention.value)
    )
    query = attention.site(attention.query(token)).unflatten(1, (heads, -1)).unsqueeze(2)
    weights = (query @ keys.transpose(2, 3) / (8 / heads) ** 0.5).softmax(dim=3)
    by_value, by_key = weights.detach() @ values, weights @ values.detach()
    for part, mixed in ((terms.value, by_value), (terms.key, by_key)):
        loss = (mixed.transpose(1, 2).flatten(1) * g).sum()
        expected = torch.autograd.grad(loss, list(x.values()), retain_graph=True)
        for ours, autograd in zip(part.values(), expected, strict=True):
            torch.testing.assert_close(ours, autograd, atol=1e-10, rtol=0)


def test_the_observed_weights_are_those_of_the_model():
    model, batch = model_of("vanilla_mt:layers=2:heads=2"), batch_of(masked=True)
    with observed(model.fusion) as seen, torch.no_grad():
        output = model(batch.inputs)
    last = seen["further.0.attention"]
    torch.testing.assert_close(last.weights.sum(dim=2), torch.ones(6, 2, dtype=torch.float64))
    for m in ("audio", "visual"):
        mass = last.of(m, last.weights).sum(dim=2).mean(dim=1)
        torch.testing.assert_close(mass, output.auxiliary[f"attention_mass/{m}"])
    by_hand = (last.weights.unsqueeze(2) @ last.values).flatten(1)
    torch.testing.assert_close(by_hand, last.mixed)
    assert float(last.entropy.max()) <= torch.tensor(13.0).log()
    assert all(not a.out._forward_pre_hooks for a in attentions(model.fusion).values())


def test_uniform_attention_has_the_entropy_of_its_keys():
    attention = ClassTokenAttention(8).eval()
    torch.nn.init.zeros_(attention.query.weight)
    with observed(torch.nn.ModuleList([attention])) as seen:
        attention({"audio": Tokens(torch.randn(2, 6, 8))})
    torch.testing.assert_close(seen["0"].entropy, torch.full((2,), 7.0).log())


def test_a_modality_without_attention_gets_no_gradient():
    """Masked but for one token whose score is far below the others: neither part reaches it."""
    model, batch = model_of("vanilla_mt"), batch_of()
    attention = attentions(model.fusion)["attention"]
    with torch.no_grad():  # a query that the visual tokens' last channel repels
        attention.site.rotation.copy_(torch.eye(8))
        attention.query.weight.zero_()
        attention.query.bias.copy_(torch.eye(8, dtype=torch.float64)[7] * 1e3)
        attention.key.weight.copy_(torch.eye(8))
        for m, value in (("audio", 1.0), ("visual", -1.0)):
            model.encoders[m].norm.weight.zero_()
            model.encoders[m].norm.bias.fill_(value)
    found = gradients(model, batch)
    site = found.sites["attention"]
    assert float(site.mass["audio"].min()) > 0.999
    assert float(site.value["visual"].max()) == 0
    assert float(site.key["visual"].max()) == 0
    assert float(found.tokens["visual"].max()) == 0
    assert float(found.tokens["audio"].min()) > 0


def test_without_a_site_the_branches_are_still_there():
    model = model_of("concat")
    found = gradients(model, batch_of())
    assert (found.sites, found.error) == ({}, None)
    assert all(float(norm.min()) > 0 for norm in found.tokens.values())


def test_a_frozen_encoder_has_tokens_and_no_parameters():
    model = model_of("vanilla_mt")
    model.encoders["audio"].requires_grad_(False)
    found = gradients(model, batch_of())
    assert found.parameters["audio"] == []
    assert float(found.tokens["audio"].min()) > 0
    assert found.error is not None
    assert found.error < 1e-10


def test_norms_are_of_single_samples_and_of_the_summed_loss():
    """Two halves of a batch give the norms of the whole, and parameter gradients that add up to its."""
    model, batch = model_of("vanilla_mt"), batch_of()
    halves = [
        Batch(Inputs({m: x[part] for m, x in batch.inputs.values.items()}), batch.target[part], batch.index[part])
        for part in (slice(0, 2), slice(2, 6))
    ]
    whole, (first, second) = gradients(model, batch), (gradients(model, half) for half in halves)
    for m in ("audio", "visual"):
        torch.testing.assert_close(torch.cat([first.tokens[m], second.tokens[m]]), whole.tokens[m])
        for a, b, both in zip(first.parameters[m], second.parameters[m], whole.parameters[m], strict=True):
            torch.testing.assert_close(a + b, both)


def test_attention_is_not_observed_in_training():
    model = model_of("vanilla_mt").train()
    with pytest.raises(ValueError, match="evaluation mode"):
        gradients(model, batch_of())
