"""Several layers and heads: both forms of the attention, a rotation per head and per layer, and what rotates when."""

from __future__ import annotations

import dataclasses
import importlib
import math

import pytest
import torch
from fakes import MODALITIES, TinyRun, strategy
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bench import names
from bench.api import Action, AttentionSite, Capability, EpochRecord, SiteRecord, SiteSample
from bench.composition import refuse_illegal
from bench.errors import RequestError
from bench.layers import ClassTokenAttention
from bench.sites import SiteSums, tapped

rollingq = importlib.import_module("bench.plugins.methods.rollingq")

SHAPES = pytest.mark.parametrize(("layers", "heads"), [(1, 2), (1, 8), (2, 1), (3, 4)])
DEEPER = "further.0.attention.site"


def build(fusion_of, task, **settings):
    """The fusion in float64 and evaluation mode, with biases that are not zero."""
    fusion = fusion_of("vanilla_mt", task, **settings).double().eval()
    for name, p in fusion.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(p)
    return fusion


def attentions(fusion):
    return [module for module in fusion.modules() if isinstance(module, ClassTokenAttention)]


def block_rotation(dim, heads, seed=5):
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randn(heads, dim // heads, dim // heads, dtype=torch.float64, generator=generator)
    return torch.block_diag(*torch.linalg.qr(blocks).Q)


@SHAPES
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rotated", [False, True])
def test_the_class_queries_alone_equal_row_0_of_the_full_attention(
    task_of, fusion_of, tokens_of, layers, heads, masked, rotated
):
    task = task_of(3)
    fusion, tokens = build(fusion_of, task, layers=layers, heads=heads), tokens_of(task, masked=masked)
    for site in fusion.sites().values():
        if rotated:
            site.rotate(block_rotation(8, heads))
    wanted = list(fusion.parameters())
    found = []
    for full in (False, True):
        for attention in attentions(fusion):
            attention.full = full
        output = fusion(tokens)
        found.append((output, torch.autograd.grad(output.logits.sin().sum(), wanted)))
    (one, gradients), (other, full_gradients) = found
    torch.testing.assert_close(one.logits, other.logits, rtol=0, atol=1e-10)
    for name, mass in one.auxiliary.items():
        torch.testing.assert_close(mass, other.auxiliary[name], rtol=0, atol=1e-10)
    for gradient, full_gradient in zip(gradients, full_gradients, strict=True):
        torch.testing.assert_close(gradient, full_gradient, rtol=0, atol=1e-10)


def test_heads_attend_by_themselves_from_the_definition(task_of, fusion_of, tokens_of):
    task = task_of(2)
    fusion, tokens = build(fusion_of, task, heads=2), tokens_of(task)
    attention = fusion.attention
    attention.site.rotate(block_rotation(8, 2))
    x = torch.cat([attention.class_token.expand(4, 1, -1), *(t.x for t in tokens.values())], dim=1)
    query = attention.site.rotation @ attention.query(attention.class_token)
    keys, values = attention.key(x), attention.value(x)
    attended, mass = [], []
    for head in (slice(0, 4), slice(4, 8)):
        weights = (keys[..., head] @ query[head] / math.sqrt(4)).softmax(dim=1)
        attended.append((weights.unsqueeze(2) * values[..., head]).sum(dim=1))
        mass.append(weights[:, 1:6].sum(dim=1))
    output = fusion(tokens)
    torch.testing.assert_close(output.logits, fusion.head(attention.out(torch.cat(attended, dim=1))))
    torch.testing.assert_close(output.auxiliary["attention_mass/audio"], (mass[0] + mass[1]) / 2)


def test_a_further_layer_asks_by_what_the_layer_before_gave(task_of, fusion_of, tokens_of):
    task = task_of(2)
    fusion, tokens = build(fusion_of, task, layers=2), tokens_of(task)
    (further,) = fusion.further
    first, _ = fusion.attention(tokens)
    normed = further.norm(first)
    scores = torch.cat([normed.unsqueeze(1), *(t.x for t in tokens.values())], dim=1)
    keys, values = further.attention.key(scores), further.attention.value(scores)
    weights = (keys @ further.attention.query(normed).unsqueeze(2) / math.sqrt(8)).softmax(dim=1)
    expected = first + further.attention.out((weights * values).sum(dim=1))
    torch.testing.assert_close(fusion(tokens).logits, fusion.head(expected))


@SHAPES
def test_padding_has_no_influence(task_of, fusion_of, tokens_of, layers, heads):
    task = task_of(3)
    fusion, tokens = build(fusion_of, task, layers=layers, heads=heads), tokens_of(task, masked=True)
    spoiled = {m: dataclasses.replace(t, x=t.x + 9 * (~t.mask).unsqueeze(-1)) for m, t in tokens.items()}
    torch.testing.assert_close(fusion(spoiled).logits, fusion(tokens).logits, rtol=0, atol=1e-12)


@SHAPES
def test_learns_everywhere_but_in_the_key_biases(
    task_of, fusion_of, model_of, batch_of, live_parameters, layers, heads
):
    task = task_of(2)
    model = model_of(fusion_of("vanilla_mt", task, layers=layers, heads=heads, dropout=0.0))
    batch = batch_of(task, masked=True)
    losses = model.fusion.terms(model(batch.inputs), batch)
    live = {n.removeprefix("fusion.") for n in live_parameters(model, losses.values()) if n.startswith("fusion.")}
    every = {n for n, _ in model.fusion.named_parameters()}
    assert every - live == {n for n in every if n.endswith("key.bias")}


def test_one_layer_and_one_head_have_the_parameters_they_always_had(task_of, fusion_of):
    fusion = fusion_of("vanilla_mt", task_of(2))
    linear = ("query", "key", "value", "out")
    expected = ["attention.class_token", *(f"attention.{n}.{p}" for n in linear for p in ("weight", "bias"))]
    assert [n for n, _ in fusion.named_parameters()] == [*expected, "head.weight", "head.bias"]
    assert list(fusion_of("vanilla_mt", task_of(2), layers=3).sites()) == [
        "attention.site",
        DEEPER,
        "further.1.attention.site",
    ]


def test_only_one_layer_with_one_head_shares_its_query(task_of, fusion_of, tokens_of):
    task = task_of(2)
    for layers, heads, shared in ((1, 1, True), (2, 1, False), (1, 2, False)):
        fusion = build(fusion_of, task, layers=layers, heads=heads)
        assert (Capability.SHARED_QUERY in fusion.provides(fusion.settings)) is shared
    seen = []
    fusion = build(fusion_of, task, layers=2)
    fusion.sites()[DEEPER].tap = seen.append
    fusion(tokens_of(task))
    assert seen[0].query.std(dim=0).max() > 1e-3


@pytest.mark.parametrize("fusion", ["vanilla_mt:layers=2", "vanilla_mt:heads=2"])
@pytest.mark.parametrize("by_svd", ["rotation=svd", "preset=released"])
def test_a_rotation_by_svd_is_refused_where_queries_differ(fusion, by_svd):
    with pytest.raises(RequestError, match="requires one query for all samples"):
        refuse_illegal(names.resolve_method(f"{fusion}+rollingq:{by_svd}", MODALITIES))
    refuse_illegal(names.resolve_method(f"{fusion}+rollingq", MODALITIES))
    refuse_illegal(names.resolve_method(f"vanilla_mt+rollingq:{by_svd}", MODALITIES))


@pytest.mark.parametrize(("rotation", "kept"), [("plane", 0.98), ("svd", 0.0)])
def test_the_decomposition_scatters_what_samples_differ_by_and_the_plane_rotation_does_not(rotation, kept):
    """Section 2.4: queries mu + eps delta, cosine of delta before and after."""
    generator = torch.Generator().manual_seed(0)
    mean, anchor = torch.randn(2, 120, dtype=torch.float64, generator=generator)
    deviations = torch.randn(500, 120, dtype=torch.float64, generator=generator)
    turn = rollingq.ROTATIONS[rotation](mean, anchor)
    cosines = F.cosine_similarity(deviations @ turn.T, deviations, dim=1)
    assert float(cosines.mean()) == pytest.approx(kept, abs=0.03)


def queries(fusion, tokens):
    """The samples' queries at the second layer's site [sample, dim]."""
    seen: list[SiteSample] = []
    site = fusion.sites()[DEEPER]
    site.tap = seen.append
    fusion(tokens)
    site.tap = None
    return seen[0].query


def test_in_a_second_layer_the_plane_rotation_keeps_what_samples_differ_by(task_of, fusion_of, tokens_of):
    task = task_of(2, dim=120)
    tokens = tokens_of(task, batch=64)
    anchor = torch.randn(120, generator=torch.Generator().manual_seed(0))
    kept = {}
    for rotation in ("plane", "svd"):
        fusion = build(fusion_of, task, layers=2)
        before = queries(fusion, tokens)
        fusion.sites()[DEEPER].rotate(rollingq.ROTATIONS[rotation](before.mean(dim=0), anchor))
        after = queries(fusion, tokens)
        kept[rotation] = float(F.cosine_similarity(after - after.mean(0), before - before.mean(0), dim=1).mean())
    assert kept["plane"] > 0.95
    assert abs(kept["svd"]) < 0.1


def test_rotating_the_second_layer_leaves_the_first_alone():
    run = TinyRun("vanilla_mt", layers=2)
    run.train()
    sites = run.model.fusion.sites()
    values = {"site": DEEPER, "rho": 0.0, "rotation": "plane", "anchor": "normalised", "air": "dataset"}
    strategy("rollingq", run.task).apply(run, Action("rollingq", "rotate", values))
    assert torch.equal(sites["attention.site"].rotation, torch.eye(8))
    after = run.site_means(DEEPER)
    units = {m: F.normalize(k, dim=0) for m, k in after.keys.items()}
    turned = F.normalize(after.query, dim=0)
    assert float(turned @ units["audio"]) == pytest.approx(float(turned @ units["visual"]), abs=1e-5)
    assert all(map(math.isfinite, run.train()))


def two_heads():
    """A site sample of two heads of two channels: the heads lean opposite ways."""
    query = torch.tensor([[1.0, 0.0, 0.0, 2.0]]).double()
    keys = {
        "audio": torch.tensor([[3.0, 0.0, 1.0, 0.0]]).double(),
        "visual": torch.tensor([[0.0, 1.0, 0.0, 5.0]]).double(),
    }
    share = {m: torch.tensor([0.5]) for m in keys}
    return SiteSample(query, keys, share, share)


def test_cosines_are_measured_per_head_and_averaged():
    sums = SiteSums(heads=2)
    sums.add(two_heads())
    means = sums.means()
    assert means.head_cosines == {"audio": [1.0, 0.0], "visual": [0.0, 1.0]}
    assert means.cosines == {"audio": 0.5, "visual": 0.5}
    whole = SiteSums()
    whole.add(two_heads())
    assert whole.means().head_cosines == {}
    assert whole.means().cosines["visual"] == pytest.approx(10 / math.sqrt(5 * 26))


class TwoHeads(TinyRun):
    """A real model whose measurement is replaced by one sample of two heads, turned by the site's rotation."""

    def __init__(self, query=None):
        super().__init__("vanilla_mt", heads=2)
        self.site = AttentionSite(4, heads=2)
        self.site.rotation = torch.eye(4, dtype=torch.float64)
        self.model.fusion.sites = lambda: {"attention.site": self.site}
        self.query = two_heads().query if query is None else query

    def site_means(self, site):
        sums = SiteSums(heads=2)
        sums.add(dataclasses.replace(two_heads(), query=self.site(self.query)))
        return sums.means()


def rotate(run, rho, **given):
    values = {"site": "attention.site", "rho": rho, "rotation": "plane", "anchor": "normalised", "air": "dataset"}
    strategy("rollingq", run.task).apply(run, Action("rollingq", "rotate", {**values, **given}))


def test_every_head_turns_towards_its_own_anchor():
    run = TwoHeads()
    rotate(run, 1.0)
    lean = 1 / (1 + math.exp(2))  # alpha of the modality a head leans to, at rho = 1 and AIR = 1
    assert run.logged["rollingq/alpha/audio"] == [pytest.approx(lean), pytest.approx(1 - lean)]
    assert run.logged["rollingq/air_before"] == [0.0]  # over both heads, which cancel
    means = run.site_means("attention.site")
    for head, first in ((0, lean), (1, 1 - lean)):
        anchor = F.normalize(torch.tensor([first, 1 - first], dtype=torch.float64), dim=0)
        query = F.normalize(means.query.chunk(2)[head], dim=0)
        torch.testing.assert_close(query, anchor)
    assert (run.site.rotation[:2, 2:] == 0).all()
    assert (run.site.rotation[2:, :2] == 0).all()
    assert int(run.site.num_rotations) == 1


def test_a_head_without_a_direction_is_left_and_it_is_said():
    run = TwoHeads(torch.tensor([[1.0, 0.0, 0.0, 0.0]]).double())
    rotate(run, 0.0)
    assert run.logged["rollingq/skipped"] == [0.5]
    assert torch.equal(run.site.rotation[2:, 2:], torch.eye(2).double())
    assert not torch.allclose(run.site.rotation[:2, :2], torch.eye(2).double())
    assert int(run.site.num_rotations) == 1
    nowhere = TwoHeads(torch.zeros(1, 4).double())
    rotate(nowhere, 0.0)
    assert nowhere.logged["rollingq/skipped"] == [1.0]
    assert int(nowhere.site.num_rotations) == 0


def test_the_last_batch_gives_all_heads_the_same_weights():
    run = TwoHeads()
    rotate(run, 1.0, air="last_batch", cosines={"audio": 0.5, "visual": -0.5})
    assert run.logged["rollingq/alpha/audio"] == [pytest.approx(1 / (1 + math.exp(2)))] * 2


def test_a_head_of_one_channel_cannot_turn():
    run = TwoHeads()
    run.site.heads = 4
    sums = SiteSums(heads=4)
    sums.add(two_heads())
    run.site_means = lambda site: sums.means()
    rotate(run, 1.0)
    assert run.logged["rollingq/skipped"] == [1.0]


def test_measuring_knows_the_heads_of_a_site(task_of, fusion_of, tokens_of):
    task = task_of(2)
    fusion = build(fusion_of, task, layers=2, heads=4)
    with tapped(fusion.sites()) as sums:
        fusion(tokens_of(task))
    assert {name: len(s.means().head_cosines["audio"]) for name, s in sums.items()} == {"attention.site": 4, DEEPER: 4}


def over(num_rotations=0):
    same = {"audio": 0.5, "visual": -0.5}
    return SiteRecord(same, same, same, same, 0.0, 1.0, num_rotations, same)


def turns(num_epochs, sites, **values):
    """The site that may be rotated after every epoch, with all of them over the threshold."""
    decided = []
    for epoch in range(num_epochs):
        record = EpochRecord(epoch, {}, 0.1, {site: over() for site in sites}, num_epochs=num_epochs)
        action = strategy("rollingq", TinyRun("vanilla_mt").task, **values).decide([record])
        decided.append(None if action is None else action.values["site"])
    return decided


def test_layers_take_turns_bottom_up():
    assert turns(7, ("one", "two", "three")) == ["one", "one", "two", "two", "three", "three", "three"]
    assert turns(2, ("one", "two", "three")) == ["one", "two"]
    assert turns(3, ("one",)) == ["one"] * 3
    assert turns(4, ("one", "two"), progressive=False) == ["one"] * 4


def test_a_site_whose_turn_is_over_or_to_come_waits():
    record = EpochRecord(0, {}, 0.1, {"one": over(1), "two": over()}, num_epochs=4)
    assert strategy("rollingq", TinyRun("vanilla_mt").task).decide([record]) is None


def test_every_product_of_layers_and_heads_is_counted(task_of, fusion_of, tokens_of):
    task = task_of(2)
    tokens = tokens_of(task, batch=1)
    counted = {}
    for layers, heads in ((1, 1), (1, 2), (2, 2)):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            build(fusion_of, task, layers=layers, heads=heads)(tokens)
        counted[layers, heads] = counter.get_total_flops()
    dim, length, head = 8, 12, 2 * 8 * 3
    maps = 5 * 2 * dim**2  # query, rotation, through keys, through values, output
    offset, own = 2 * dim, 2 * 2 * dim
    layer = maps + offset + own + 2 * 2 * 2 * dim * length  # two heads: scores and averages
    assert counted[1, 2] == layer + head
    assert counted[2, 2] == 2 * layer + head
    assert counted[1, 1] < counted[1, 2]


def test_further_layers_need_class_tokens(tokens_of, task_of):
    attention = ClassTokenAttention(8, learned=False).double()
    with pytest.raises(ValueError, match="needs the samples' class tokens"):
        attention(tokens_of(task_of(2)))
    with pytest.raises(ValueError, match="width 8 is no multiple of 3 heads"):
        ClassTokenAttention(8, heads=3)
