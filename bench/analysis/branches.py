"""How the gradient of the loss reaches every modality's branch, and through which part of the attention."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from bench.analysis.attended import Attended, observed
from bench.api import Batch, Encoder, Model, Tokens


@dataclass(frozen=True)
class Terms:
    """The gradient of the loss with respect to the tokens [batch, tokens, dim] at one attention, in two parts."""

    value: Mapping[str, Tensor]
    """m -> through what the tokens are averaged to, the weights held."""
    key: Mapping[str, Tensor]
    """m -> through the weights."""


def closed_form(attended: Attended, gradient: Float[Tensor, "batch dim"]) -> Terms:
    """Both parts from the gradient g of the loss with respect to the mixed values h of all heads.

    dL/dz_j = s_j [ W_V' g + (g.(v_j - h)) W_K' r / sqrt(width) ], summed over heads, with the weights s, the values v
    and the rotated query r of a head. It is the derivative of softmax attention and holds to rounding.
    """
    attention, heads = attended.attention, attended.attention.heads
    g = gradient.unflatten(1, (heads, -1))  # [B, H, W]
    w_value, w_key = (part.weight.unflatten(0, (heads, -1)) for part in (attention.value, attention.key))  # [H, W, D]
    mixed = attended.mixed.unflatten(1, (heads, -1)).unsqueeze(2)  # [B, H, 1, W]
    inner = ((attended.values - mixed) @ g.unsqueeze(3)).squeeze(3)  # [B, H, keys]
    by_key = attended.weights * inner / math.sqrt(g.shape[2])
    toward_value = torch.einsum("bhw,hwd->bhd", g, w_value)
    toward_key = torch.einsum("bhw,hwd->bhd", attended.query, w_key).expand_as(toward_value)
    value, key = {}, {}
    for m in attended.tokens:
        value[m] = torch.einsum("bht,bhd->btd", attended.of(m, attended.weights), toward_value)
        key[m] = torch.einsum("bht,bhd->btd", attended.of(m, by_key), toward_key)
    return Terms(value, key)


@dataclass(frozen=True)
class SiteNorms:
    """Frobenius norms [batch] of a sample's gradient at one attention, by modality."""

    value: Mapping[str, Tensor]
    key: Mapping[str, Tensor]
    mass: Mapping[str, Tensor]
    """The attention mass of the modality, [batch]."""


@dataclass(frozen=True)
class BatchGradients:
    """What one batch adds: sums over its samples of the loss's gradients."""

    tokens: Mapping[str, Tensor]
    """m -> norm [batch] of each sample's gradient with respect to the tokens that enter the fusion."""
    parameters: Mapping[str, list[Tensor]]
    """m -> the gradient of the summed loss with respect to the parameters of its branch."""
    sites: Mapping[str, SiteNorms]
    error: float | None
    """Largest difference of the closed form from autograd, relative to the largest gradient; None without a site."""


def gradients(model: Model, batch: Batch) -> BatchGradients:
    """The gradients of the joint loss alone (no probe, no unimodal head), in evaluation mode."""
    encoders = {m: cast(Encoder, encoder) for m, encoder in model.encoders.items()}
    with observed(model.fusion) as seen, torch.enable_grad():
        tokens: dict[str, Tokens] = model.fusion.encode(encoders, batch.inputs)
        for t in tokens.values():
            if not t.x.requires_grad:  # all of its encoder is frozen
                t.x.requires_grad_()
        output = model.fusion(tokens)
        loss = model.fusion.task.loss(output.logits, batch.target) * len(batch.index)
        branches = {m: model.branch(m) for m in tokens}
        at_sites = {name: [a.mixed, *(t.x for t in a.tokens.values())] for name, a in seen.items()}
        wanted = [
            *(t.x for t in tokens.values()),
            *(p for branch in branches.values() for p in branch),
            *(x for inputs in at_sites.values() for x in inputs),
        ]
        found = torch.autograd.grad(loss, wanted, allow_unused=True)
    given = iter(torch.zeros_like(x) if g is None else g for x, g in zip(wanted, found, strict=True))
    of_tokens = {m: _norm(next(given)) for m in tokens}
    of_branches = {m: [next(given) for _ in branch] for m, branch in branches.items()}
    of_sites = {name: [next(given) for _ in inputs] for name, inputs in at_sites.items()}
    terms = {name: closed_form(a, of_sites[name][0]) for name, a in seen.items()}
    with torch.no_grad():
        return BatchGradients(
            tokens=of_tokens,
            parameters=of_branches,
            sites={name: _norms(a, terms[name]) for name, a in seen.items()},
            error=_error(seen, terms, {name: parts[1:] for name, parts in of_sites.items()}),
        )


def _norms(attended: Attended, terms: Terms) -> SiteNorms:
    return SiteNorms(
        value={m: _norm(part) for m, part in terms.value.items()},
        key={m: _norm(part) for m, part in terms.key.items()},
        mass={m: attended.of(m, attended.weights).sum(dim=2).mean(dim=1) for m in attended.tokens},
    )


def _error(
    seen: Mapping[str, Attended], terms: Mapping[str, Terms], autograd: Mapping[str, list[Tensor]]
) -> float | None:
    """Tokens that several attentions read get the sum of what each of them says."""
    closed: dict[int, Tensor] = {}
    for name, attended in seen.items():
        for m, t in attended.tokens.items():
            part = terms[name].value[m] + terms[name].key[m]
            closed[id(t.x)] = closed[id(t.x)] + part if id(t.x) in closed else part
    differences, largest = [], 0.0
    for name, attended in seen.items():
        for t, exact in zip(attended.tokens.values(), autograd[name], strict=True):
            differences.append(float((closed[id(t.x)] - exact).abs().max()))
            largest = max(largest, float(exact.abs().max()))
    return max(differences) / largest if differences and largest > 0 else None


def _norm(x: Tensor) -> Float[Tensor, " batch"]:
    return x.detach().flatten(1).norm(dim=1)
