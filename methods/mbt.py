"""Modalities exchange information only through a few bottleneck tokens, layer after layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench import api
from bench.api import Batch, Capability, Encoder, Fusion, Inputs, Output, TaskSpec, Tokens, setting
from bench.layers import TransformerBlock, concatenate, xavier


class MBT(Fusion):
    """Blocks of its own per modality over [its tokens; bottleneck]; the bottleneck becomes the modalities' mean.

    Differs from the paper: the defaults are those of RollingQ's row (four blocks with one head and two bottleneck
    tokens on top of every encoder, one linear layer on the mean class token), which its published cost identifies;
    `head=token` is the authors' head and loss. Their blocks replace the encoders' last ones and start pretrained,
    ours follow the encoders and start from scratch, so that all rows share the same encoders.
    """

    paper = "Nagrani, Yang, Arnab, Jansen, Schmid and Sun, Attention bottlenecks for multimodal fusion, NeurIPS 2021"
    reference = "google-research/scenic projects/mbt (Apache-2.0)"

    @dataclass(frozen=True)
    class Settings(api.Settings):
        """Size of the bottleneck part, and how logits come out of the modalities' class tokens."""

        layers: int = setting(4, low=0, high=12, search=(1, 6), help="bottleneck blocks per modality")
        tokens: int = setting(2, low=1, high=64, search=(1, 16), log=True, help="bottleneck tokens")
        heads: int = setting(1, low=1, high=64, help="attention heads; a divisor of the token width")
        head: str = setting(
            "mean",
            choices=("mean", "token", "concat"),
            help="linear on the mean class token; mean of a shared linear on each; linear on all of them",
        )

    def __init__(self, settings: Settings, task: TaskSpec) -> None:
        super().__init__(settings, task)
        dim = task.dim
        if dim % settings.heads:
            raise ValueError(f"mbt: heads={settings.heads} does not divide the token width {dim}")
        self.blocks = nn.ModuleDict(
            {
                m: nn.ModuleList(TransformerBlock(dim, settings.heads) for _ in range(settings.layers))
                for m in task.modalities
            }
        )
        self.bottleneck = nn.Parameter(torch.empty(settings.tokens if settings.layers else 0, dim))
        nn.init.trunc_normal_(self.bottleneck, std=0.02)
        self.head = nn.Linear(dim * (len(task.modalities) if settings.head == "concat" else 1), task.num_outputs)
        xavier(self.head)
        if settings.head == "token":
            nn.init.zeros_(self.head.weight)  # the authors' start: every class equally likely

    @classmethod
    def provides(cls, settings: Settings) -> frozenset[Capability]:
        """With the authors' head, trained unimodal logits that are averaged; else one joint logit vector."""
        if settings.head == "token":
            return super().provides(settings) - {Capability.JOINT_LOGITS} | {Capability.UNIMODAL_HEADS}
        return super().provides(settings)

    @classmethod
    def requires(cls, settings: Settings) -> frozenset[Capability]:
        """Bottleneck tokens pass through the blocks of every modality."""
        return frozenset({Capability.EQUAL_DIMS})

    def encode(self, encoders: Mapping[str, Encoder], inputs: Inputs) -> dict[str, Tokens]:
        """Tokens after the encoders' stages, the bottleneck blocks, and the encoders' norms."""
        tokens = {m: encoder.stem(inputs.values[m], inputs.masks.get(m)) for m, encoder in encoders.items()}
        for m, encoder in encoders.items():
            for stage in encoder.stages:
                tokens[m] = dataclasses.replace(tokens[m], x=stage(tokens[m].x, tokens[m].mask))
        tokens = self.exchange(tokens)
        return {m: dataclasses.replace(t, x=encoders[m].norm(t.x)) for m, t in tokens.items()}

    def exchange(self, tokens: Mapping[str, Tokens]) -> dict[str, Tokens]:
        """Tokens after the bottleneck blocks; what a layer writes into the bottleneck, the next one reads."""
        updated = dict(tokens)
        stacks = {m: list(self.blocks[m].children()) for m in tokens}
        bottleneck = self.bottleneck.expand(len(next(iter(tokens.values())).x), -1, -1)  # [B, N, D]
        for layer in range(self.settings.layers):
            written = []
            for m, t in updated.items():
                joined = concatenate([t, Tokens(bottleneck)])
                hidden = stacks[m][layer](joined.x, joined.mask)
                own, bottlenecks = hidden.split([t.x.shape[1], bottleneck.shape[1]], dim=1)
                updated[m] = dataclasses.replace(t, x=own)
                written.append(bottlenecks)
            bottleneck = torch.stack(written).mean(dim=0)
        return updated

    def forward(self, tokens: Mapping[str, Tokens]) -> Output:
        """Logits from the modalities' class tokens, as `head` says."""
        features = {m: tokens[m].pooled for m in self.task.modalities}
        if self.settings.head == "concat":
            return Output(self.head(torch.cat(list(features.values()), dim=1)), features)
        if self.settings.head == "mean":
            return Output(self.head(torch.stack(list(features.values())).mean(dim=0)), features)
        unimodal = {m: self.head(z) for m, z in features.items()}
        return Output(torch.stack(list(unimodal.values())).mean(dim=0), features, {"head": unimodal})

    def terms(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """The loss of the joint logits; with the authors' head the mean of the modalities' losses, term by term."""
        if self.settings.head != "token":
            return super().terms(output, batch)
        heads = output.unimodal["head"]
        return {f"unimodal/{m}": self.task.loss(u, batch.target) / len(heads) for m, u in heads.items()}

    def suffix_params(self, modality: str) -> list[nn.Parameter]:
        """The modality's bottleneck blocks."""
        return list(self.blocks[modality].parameters())
