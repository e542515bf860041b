"""OGM-GE: slow down the encoder of the modality that is ahead, and add noise to keep what slowing takes away.

The modality whose own logits give the true class more probability than the others' do is ahead. The gradient of
its branch is multiplied by a coefficient below one; Gaussian noise of the gradient's own spread restores the
stochasticity that small gradients lose (generalisation enhancement).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from bench import api
from bench.api import Batch, Capability, Output, Run, Strategy, TaskSpec, setting


def true_class_scores(logits: Mapping[str, Tensor], target: Int[Tensor, " batch"]) -> Float[Tensor, " modalities"]:
    """The probability each modality's logits [batch, classes] give the true class, summed over the batch."""
    column = target.unsqueeze(1)  # [B, 1]
    return torch.stack([u.detach().float().softmax(dim=1).gather(1, column).sum() for u in logits.values()])


def score_ratios(
    scores: Float[Tensor, " modalities"], ratio: Literal["pairwise", "min"] = "pairwise"
) -> Float[Tensor, " modalities"]:
    """How far each modality is ahead: the mean of its ratios to the others, or its ratio to the weakest."""
    floored = scores.clamp_min(1e-8)
    if ratio == "min":
        return scores / floored.min()
    itself = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    ratios = (scores.unsqueeze(1) / floored).masked_fill(itself, 0.0)  # [M, M]
    return ratios.sum(dim=1) / (len(scores) - 1)


def coefficients(
    scores: Float[Tensor, " modalities"], alpha: float, ratio: Literal["pairwise", "min"] = "pairwise"
) -> Float[Tensor, " modalities"]:
    """What each branch's gradient is multiplied by: 1 - tanh(alpha rho) where rho > 1, else 1."""
    rho = score_ratios(scores, ratio)
    return torch.where(rho > 1, 1 - torch.tanh(alpha * rho), torch.ones_like(rho))


class OGM(Strategy):
    """On-the-fly gradient modulation with generalisation enhancement.

    Differs from the paper: any number of modalities, by the mean of the pairwise ratios as its authors advise
    (their issue 16), which is the paper's rule for two. The released code modulates convolution kernels found by
    name and so leaves a transformer untouched; here a branch is every parameter upstream of the fusion, as the
    authors advise too (issue 22). `scope=matrix` leaves biases and norms alone. On a tie nobody is slowed, as in
    the paper; the released code slows audio. Noise goes to tensors of two or more axes, since the spread of a
    bias of one element is undefined. Where the fusion has no unimodal logits of its own the detached probes give
    the scores. Under Adam a constant coefficient cancels: use SGD.
    """

    paper = "Peng, Wei, Deng, Wang and Hu, Balanced Multimodal Learning via On-the-fly Gradient Modulation, CVPR 2022"
    reference = "GeWu-Lab/OGM-GE_CVPR2022 (MIT)"
    home = "concat"

    @dataclass(frozen=True)
    class Settings(api.Settings):
        """Strength, noise, window of epochs, and what is modulated."""

        alpha: float = setting(0.3, low=0.0, search=(0.05, 1.0), neutral=0.0, help="strength of the modulation")
        ge: bool = setting(True, neutral=False, help="add noise of the gradient's own spread")
        starts: int = setting(0, low=0, help="first epoch that is modulated")
        ends: int = setting(-1, low=-1, help="last epoch that is modulated; -1 is the last of all")
        ratio: Literal["pairwise", "min"] = setting(
            "pairwise", choices=("pairwise", "min"), help="what a modality is compared with"
        )
        scope: Literal["branch", "matrix"] = setting(
            "branch", choices=("branch", "matrix"), help="every tensor of a branch, or those of two or more axes"
        )

    settings: Settings

    def __init__(self, settings: Settings, task: TaskSpec) -> None:
        super().__init__(settings, task)
        self.branches: dict[str, list[nn.Parameter]] = {}
        self.noise: Generator | None = None

    @classmethod
    def requires(cls, settings: Settings) -> frozenset[Capability]:
        """Scores are probabilities of the true class, and a modality is ahead of another."""
        return frozenset({Capability.CLASSES, Capability.SEVERAL_MODALITIES})

    def epoch_start(self, run: Run) -> None:
        """Look up the branches and take this epoch's noise generator."""
        for m in run.task.modalities:
            branch = run.model.branch(m)
            self.branches[m] = [p for p in branch if self.settings.scope == "branch" or p.ndim > 1]
            if not self.branches[m]:
                raise ValueError(
                    f"ogm: the branch of {m!r} has no tensor to modulate; found {len(branch)} trainable parameters "
                    f"with scope={self.settings.scope}, needed at least one (are the encoders frozen?)"
                )
        self.noise = run.generator("ogm") if self.settings.ge else None

    def grads(self, run: Run, batch: Batch, output: Output) -> None:
        """Scale every branch's gradient and add noise; the coefficients never leave the device."""
        last = self.settings.ends if self.settings.ends >= 0 else run.num_epochs - 1
        if not self.settings.starts <= run.epoch <= last:
            return
        logits = output.best_unimodal()
        scores = true_class_scores(logits, batch.target)
        for m, k in zip(logits, coefficients(scores, self.settings.alpha, self.settings.ratio), strict=True):
            run.log(f"ogm/coefficient/{m}", k)
            for p in self.branches[m]:
                if p.grad is not None:
                    self._modulate(p.grad, k)

    def _modulate(self, grad: Tensor, k: Tensor) -> None:
        if self.noise is None or grad.ndim < 2 or grad.numel() < 2:
            grad.mul_(k)
            return
        spread = grad.std()  # of the gradient before it is scaled
        noise = torch.randn(grad.shape, generator=self.noise, device=grad.device, dtype=grad.dtype)
        grad.mul_(k).add_(noise.mul_(spread))
