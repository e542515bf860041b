"""Blocks that several fusions and encoders share: attention with a site, transformer blocks, initialisation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from bench.api import AttentionSite, SiteSample, Tokens


def xavier(module: nn.Module) -> None:
    """Xavier-normal weights and zero biases for a linear layer, as the reference initialises every one."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Attention(nn.Module):
    """Multi-head attention of `x` over `context` with a key mask; without a valid key only the output bias is left."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0, context_dim: int | None = None) -> None:
        super().__init__()
        _refuse_uneven(dim, heads)
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(context_dim or dim, dim)
        self.value = nn.Linear(context_dim or dim, dim)
        self.out = nn.Linear(dim, dim)
        self.apply(xavier)

    def forward(
        self,
        x: Float[Tensor, "batch queries dim"],
        context: Float[Tensor, "batch keys width"],
        mask: Bool[Tensor, "batch keys"] | Bool[Tensor, "batch queries keys"] | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """Attended values; `mask` is True where a key is valid, for all queries or for each."""
        q, k, v = (_split_heads(f, self.heads) for f in (self.query(x), self.key(context), self.value(context)))
        return self.out(masked_attention(q, k, v, mask, self.dropout if self.training else 0.0))


def _refuse_uneven(dim: int, heads: int) -> None:
    if dim % heads:
        raise ValueError(f"width {dim} is no multiple of {heads} heads")


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # [B, T, D] -> [B, H, T, D / H]


def masked_attention(
    q: Float[Tensor, "batch heads queries width"],
    k: Float[Tensor, "batch heads keys width"],
    v: Float[Tensor, "batch heads keys width"],
    mask: Bool[Tensor, "batch keys"] | Bool[Tensor, "batch queries keys"] | None,
    dropout: float = 0.0,
) -> Float[Tensor, "batch queries dim"]:
    """Scaled dot-product attention with heads merged; zeros where a query has no valid key."""
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2).flatten(2)
    if mask.ndim == 2:
        mask = mask.unsqueeze(1)  # [B, 1, T]
    nothing = ~mask.any(dim=2, keepdim=True)  # [B, Q or 1, 1]: softmax over nothing would be NaN
    allowed = (mask | nothing).unsqueeze(1)  # [B, 1, Q or 1, T]
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout)
    return attended.masked_fill(nothing.unsqueeze(1), 0.0).transpose(1, 2).flatten(2)


class TransformerBlock(nn.Module):
    """A pre-norm transformer block as in ViT: x + attention(norm(x)), then x + MLP(norm(x)), GELU."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_ratio * dim), nn.GELU(), nn.Linear(mlp_ratio * dim, dim))
        self.drop = nn.Dropout(dropout)
        self.heads, self.dropout = heads, dropout
        self.apply(xavier)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """The tokens after self-attention over the valid ones."""
        q, k, v = (_split_heads(f, self.heads) for f in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        attended = masked_attention(q, k, v, mask, self.dropout if self.training else 0.0)
        x = x + self.drop(self.proj(attended))
        return x + self.drop(self.mlp(self.norm2(x)))


class ClassTokenAttention(nn.Module):
    """A class token attends over the tokens of all modalities: the attention site of `vanilla_mt`.

    One layer, no residual, no norm, no positions (RollingQ's fusion, ICML 2025). The class token is one of its own
    keys; it is learned, or (`learned=False`) one per sample given by the caller. Only the class query is computed:
    with r the rotated query of a head, r.(W x + b) = (W'r).x + r.b, and values are averaged before they are
    projected, so neither keys nor values of the tokens are formed. This equals row 0 of the full attention (`full`);
    a test and a benchmark hold it.
    """

    class_token: nn.Parameter | None

    def __init__(self, dim: int, dropout: float = 0.2, heads: int = 1, learned: bool = True) -> None:
        super().__init__()
        _refuse_uneven(dim, heads)
        self.dim, self.heads = dim, heads
        self.class_token = nn.Parameter(torch.empty(dim)) if learned else None
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.site = AttentionSite(dim, heads)
        self.weight_dropout = nn.Dropout(dropout)
        self.out_dropout = nn.Dropout(dropout)
        self.full = False
        self.apply(xavier)
        if self.class_token is not None:
            nn.init.trunc_normal_(self.class_token, std=0.02)

    def forward(
        self, tokens: Mapping[str, Tokens], class_token: Float[Tensor, "batch dim"] | None = None
    ) -> tuple[Float[Tensor, "batch dim"], dict[str, Tensor]]:
        """The attended class token, and the attention mass [batch] of every modality (before dropout).

        The mass is the mean over heads.
        """
        learned = self.class_token
        # Stacking copies: torch's FLOP counter cannot follow a view of a parameter.
        token = class_token if learned is None else torch.stack([learned])  # [B or 1, D]
        if token is None:
            raise ValueError("ClassTokenAttention: learned=False needs the samples' class tokens [batch, dim]")
        if self.full:
            query, weights, attended = self._all_rows(tokens, token)
        elif learned is not None and self.heads == 1:
            query, weights, attended = self._class_row(tokens, learned)
        else:
            query, weights, attended = self._class_rows(tokens, token)
        sizes = [1, *(t.x.shape[1] for t in tokens.values())]
        mass = {m: w.sum(dim=1) for m, w in zip(tokens, weights.split(sizes, dim=1)[1:], strict=True)}
        if self.site.tap is not None:
            self.site.tap(self._sample(query, tokens, mass))
        return self.out_dropout(attended), mass

    def _class_row(self, tokens: Mapping[str, Tokens], token: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The query [1, D] of one head and one class token [D], its weights [B, 1 + T], and what it attends to [B, D].

        Scores are then a matrix times a vector.
        """
        query = self.site(self.query(token).unsqueeze(0))  # [1, D]
        toward = F.linear(query, self.key.weight.T) / math.sqrt(self.dim)  # [1, D]: W'r
        offset = (query * self.key.bias).sum() / math.sqrt(self.dim)  # the same for every key
        batch = next(iter(tokens.values())).x.shape[0]
        scores = [(toward @ token + offset).expand(batch, 1)]
        for t in tokens.values():
            score = (t.x @ toward.T).squeeze(-1) + offset  # [B, T]
            scores.append(score if t.mask is None else score.masked_fill(~t.mask, -math.inf))
        weights = torch.cat(scores, dim=1).softmax(dim=1)
        kept = self.weight_dropout(weights)
        own, *parts = kept.split([s.shape[1] for s in scores], dim=1)
        context = own * token
        for t, w in zip(tokens.values(), parts, strict=True):
            context = context + torch.bmm(w.unsqueeze(1), t.x.to(w.dtype)).squeeze(1)  # [B, D]
        total = kept.sum(dim=1, keepdim=True)  # 1, but for dropout
        attended = F.linear(context, self.value.weight) + total * self.value.bias
        return query, weights, self.out(attended)

    def _class_rows(self, tokens: Mapping[str, Tokens], token: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same with a query per head, and per sample where each has a class token of its own [B, D]."""
        query = self.site(self.query(token))  # [B or 1, D]
        by_head = query.unflatten(1, (self.heads, -1))  # [B or 1, H, D / H]
        scale = math.sqrt(self.dim // self.heads)
        toward = torch.einsum("bhw,hwd->bhd", by_head, self._by_head(self.key.weight)) / scale
        offset = torch.einsum("bhw,hw->bh", by_head, self._by_head(self.key.bias)).unsqueeze(2) / scale
        batch = next(iter(tokens.values())).x.shape[0]
        scores = [((toward @ token.unsqueeze(2)) + offset).expand(batch, -1, -1)]  # [B, H, 1]
        for t in tokens.values():
            score = toward @ t.x.transpose(1, 2) + offset  # [B, H, T]
            scores.append(score if t.mask is None else score.masked_fill(~t.mask.unsqueeze(1), -math.inf))
        weights = torch.cat(scores, dim=2).softmax(dim=2)
        kept = self.weight_dropout(weights)
        own, *parts = kept.split([s.shape[2] for s in scores], dim=2)
        context = own * token.unsqueeze(1)  # [B, H, D]
        for t, w in zip(tokens.values(), parts, strict=True):
            context = context + torch.bmm(w, t.x.to(w.dtype))
        values = torch.einsum("bhd,hwd->bhw", context, self._by_head(self.value.weight))
        total = kept.sum(dim=2, keepdim=True)  # 1, but for dropout
        attended = (values + total * self._by_head(self.value.bias)).flatten(1)
        return query, weights.mean(dim=1), self.out(attended)

    def _by_head(self, parameter: Tensor) -> Tensor:
        return parameter.unflatten(0, (self.heads, -1))  # [D, ...] -> [H, D / H, ...]

    def _sample(self, query: Tensor, tokens: Mapping[str, Tokens], mass: Mapping[str, Tensor]) -> SiteSample:
        counts = {m: _token_counts(t) for m, t in tokens.items()}
        total = 1 + torch.stack(list(counts.values())).sum(dim=0)
        means = {m: self.key(_token_mean(t)).detach() for m, t in tokens.items()}
        batch = next(iter(tokens.values())).x.shape[0]
        return SiteSample(
            query=query.detach().expand(batch, -1),
            mean_keys=means,
            mass={m: w.detach() for m, w in mass.items()},
            base_rate={m: count / total for m, count in counts.items()},
        )

    def _all_rows(self, tokens: Mapping[str, Tokens], token: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same from the full attention, as the released code computes it: every row, one of them used."""
        batch = next(iter(tokens.values())).x.shape[0]
        x = torch.cat([token.unsqueeze(1).expand(batch, -1, -1), *(t.x for t in tokens.values())], dim=1)
        q, k, v = self.query(x), self.key(x), self.value(x)
        query = self.site(q[:, 0])  # [B, D]: of all rows, only this one is rotated
        q = torch.cat([query.unsqueeze(1), q[:, 1:]], dim=1)
        q, k, v = (_split_heads(f, self.heads) for f in (q, k, v))  # [B, H, 1 + T, D / H]
        scores = q @ k.transpose(2, 3) / math.sqrt(self.dim // self.heads)  # [B, H, 1 + T, 1 + T]
        valid = [torch.ones(batch, 1, dtype=torch.bool, device=x.device)]
        valid += [_valid(t) for t in tokens.values()]
        weights = scores.masked_fill(~torch.cat(valid, dim=1)[:, None, None, :], -math.inf).softmax(dim=-1)
        attended = self.out((self.weight_dropout(weights) @ v).transpose(1, 2).flatten(2))  # [B, 1 + T, D]
        return query, weights[:, :, 0].mean(dim=1), attended[:, 0]


def _valid(tokens: Tokens) -> Bool[Tensor, "batch tokens"]:
    if tokens.mask is not None:
        return tokens.mask
    return torch.ones(tokens.x.shape[:2], dtype=torch.bool, device=tokens.x.device)


def _token_counts(tokens: Tokens) -> Float[Tensor, " batch"]:
    return _valid(tokens).sum(dim=1).to(torch.float32)


def _token_mean(tokens: Tokens) -> Float[Tensor, "batch dim"]:
    """The mean over all valid tokens, the encoder's class token included (as in the released code)."""
    return Tokens(tokens.x, tokens.mask, has_class_token=False).pooled


def concatenate(tokens: Sequence[Tokens]) -> Tokens:
    """One token sequence from several, masks included."""
    x = torch.cat([t.x for t in tokens], dim=1)
    if all(t.mask is None for t in tokens):
        return Tokens(x, None, has_class_token=False)
    return Tokens(x, torch.cat([_valid(t) for t in tokens], dim=1), has_class_token=False)
