"""What a class-token attention did with a batch, formed by definition: query, weights, values, token by token."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bench.api import Tokens
from bench.layers import ClassTokenAttention


@dataclass(frozen=True)
class Attended:
    """One attention over one batch, in evaluation mode; keys are the class token's, then each modality's in order."""

    attention: ClassTokenAttention
    tokens: Mapping[str, Tokens]
    query: Float[Tensor, "one_or_batch heads width"]
    """Rotated, as it competes."""
    keys: Float[Tensor, "batch heads keys width"]
    values: Float[Tensor, "batch heads keys width"]
    weights: Float[Tensor, "batch heads keys"]
    mixed: Float[Tensor, "batch dim"]
    """The weighted values of all heads as the model computed them, before the output projection."""

    def of(self, modality: str, per_key: Tensor) -> Tensor:
        """The part [batch, heads, tokens, ...] of something per key that belongs to one modality."""
        sizes = [1, *(t.x.shape[1] for t in self.tokens.values())]
        return per_key.split(sizes, dim=2)[1 + list(self.tokens).index(modality)]

    @property
    def entropy(self) -> Float[Tensor, " batch"]:
        """Entropy of the weights over all keys in nats, the mean over heads."""
        return torch.special.entr(self.weights).sum(dim=2).mean(dim=1)


def attentions(fusion: nn.Module) -> dict[str, ClassTokenAttention]:
    """The class-token attentions inside a fusion, by module path."""
    return {name: module for name, module in fusion.named_modules() if isinstance(module, ClassTokenAttention)}


@contextmanager
def observed(fusion: nn.Module) -> Iterator[dict[str, Attended]]:
    """What every class-token attention does in the latest forward pass inside this context, by module path."""
    seen: dict[str, Attended] = {}
    handles: list[RemovableHandle] = []
    for name, attention in attentions(fusion).items():
        watch = _Watch(name, seen)
        handles.append(attention.out.register_forward_pre_hook(watch.before_projection))
        handles.append(attention.register_forward_hook(watch.after))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class _Watch:
    """Notes what one attention is given and what its output projection is given."""

    def __init__(self, name: str, seen: dict[str, Attended]) -> None:
        self.name, self.seen = name, seen
        self.mixed: Tensor | None = None

    def before_projection(self, _: nn.Module, given: tuple[Any, ...]) -> None:
        self.mixed = given[0]

    def after(self, attention: nn.Module, given: tuple[Any, ...], _: Any) -> None:
        assert isinstance(attention, ClassTokenAttention)
        assert self.mixed is not None  # the projection comes first
        tokens, class_token = given if len(given) > 1 else (given[0], None)
        self.seen[self.name] = _attended(attention, tokens, class_token, self.mixed)


def _attended(
    attention: ClassTokenAttention, tokens: Mapping[str, Tokens], class_token: Tensor | None, mixed: Tensor
) -> Attended:
    if attention.training:
        raise ValueError("attention is observed in evaluation mode: dropout would change the weights")
    tap, attention.site.tap = attention.site.tap, None
    try:
        with torch.no_grad():
            learned = attention.class_token
            token = class_token if learned is None else learned.unsqueeze(0)
            assert token is not None  # the model has just run
            batch = next(iter(tokens.values())).x.shape[0]
            x = torch.cat([token.unsqueeze(1).expand(batch, -1, -1), *(t.x for t in tokens.values())], dim=1)
            query = attention.site(attention.query(token)).unflatten(1, (attention.heads, -1))  # [B or 1, H, W]
            keys, values = (
                part(x).unflatten(2, (attention.heads, -1)).transpose(1, 2) for part in (attention.key, attention.value)
            )
            scores = (keys @ query.unsqueeze(3)).squeeze(3) / math.sqrt(query.shape[2])  # [B, H, 1 + T]
            valid = [torch.ones(batch, 1, dtype=torch.bool, device=x.device), *(_valid(t) for t in tokens.values())]
            weights = scores.masked_fill(~torch.cat(valid, dim=1).unsqueeze(1), -math.inf).softmax(dim=2)
    finally:
        attention.site.tap = tap
    return Attended(attention, tokens, query, keys, values, weights, mixed)


def _valid(tokens: Tokens) -> Tensor:
    if tokens.mask is not None:
        return tokens.mask
    return torch.ones(tokens.x.shape[:2], dtype=torch.bool, device=tokens.x.device)
