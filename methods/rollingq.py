"""RollingQ: when one modality has taken over the attention, rotate the query towards a balance of all keys.

In a multimodal transformer the query drifts towards the keys of the modality that is learned faster, whose keys
grow and attract it further, whatever a sample's quality. The attention imbalance rate (AIR) shows this; when it
passes a threshold the query is rotated once onto an anchor between the mean keys, and training goes on from there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from bench import api
from bench.api import (
    Action,
    Capability,
    EpochRecord,
    Passes,
    Run,
    Strategy,
    attention_imbalance,
    setting,
)

ANTIPODAL = 1e-12
"""|x + y|^2 of unit vectors below which the plane of the turn is not determined in float64."""


def anchor_weights(cosines: Mapping[str, float], rho: float) -> dict[str, float]:
    """softmax(-2 rho cos) over the modalities; for two it is the paper's (1 + tanh(-rho AIR)) / 2."""
    lowest = min(cosines.values())
    raised = {m: math.exp(-2 * rho * (cosine - lowest)) for m, cosine in cosines.items()}
    total = sum(raised.values())
    return {m: value / total for m, value in raised.items()}


def direction(vector: Float[Tensor, " dim"]) -> Float[Tensor, " dim"] | None:
    """The unit vector in float64 on the CPU; None for a vector that has no direction."""
    vector = vector.detach().cpu().double()
    norm = torch.linalg.vector_norm(vector)
    return vector / norm if norm >= 1e-12 * math.sqrt(len(vector)) else None


def anchor_direction(
    keys: Mapping[str, Tensor], weights: Mapping[str, float], anchor: Literal["normalised", "raw"] = "normalised"
) -> Float[Tensor, " dim"] | None:
    """The direction of sum_m weight_m key_m, keys scaled to length one unless `raw`; None where they cancel."""
    parts: list[Tensor] = []
    for m, key in keys.items():
        part = direction(key) if anchor == "normalised" else key.detach().cpu().double()
        if part is None:
            return None
        parts.append(weights[m] * part)
    total = torch.stack(parts).sum(dim=0)
    scale = torch.stack([torch.linalg.vector_norm(part) for part in parts]).sum()
    return direction(total) if torch.linalg.vector_norm(total) > 1e-6 * scale else None


def plane_rotation(x: Float[Tensor, " dim"], y: Float[Tensor, " dim"]) -> Float[Tensor, "dim dim"]:
    """The smallest rotation that takes the direction of x to that of y: the identity off their plane, in float64.

    The product of two reflections, I - 2 ss'/s's + 2 yx' with s = x + y, which stays orthogonal close to the
    antipode, where the form in 1 / (1 + x.y) does not. Between antipodes every turn is as small as another; the
    one through the basis vector that x has least of is taken. ValueError for a zero vector, and for opposite
    numbers in one dimension, which no rotation connects.
    """
    x, y = _unit_pair(x, y)
    if torch.equal(x, y):
        return torch.eye(len(x), dtype=torch.float64)
    s = x + y
    if s @ s >= ANTIPODAL:
        return _turn(x, y)
    halfway = torch.zeros_like(x)
    halfway[x.abs().argmin()] = 1.0
    halfway = halfway - (halfway @ x) * x
    halfway = halfway / torch.linalg.vector_norm(halfway)
    return _turn(halfway, y) @ _turn(x, halfway)


def svd_rotation(x: Float[Tensor, " dim"], y: Float[Tensor, " dim"]) -> Float[Tensor, "dim dim"]:
    """A rotation UV' from the singular vectors of the rank-one yx', as released, in float64.

    It takes the direction of x to that of y. On the rest of the space it is whatever orthogonal map the
    decomposition fills the null space with: repeatable on one machine with one thread count, and no further.
    """
    x, y = _unit_pair(x, y)
    left, _, right = torch.linalg.svd(torch.outer(y, x))
    if torch.linalg.det(left @ right) < 0:
        left[:, -1] *= -1  # a null direction, so that x still goes to y
    return left @ right


ROTATIONS = {"plane": plane_rotation, "svd": svd_rotation}


def _unit_pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    units = direction(x), direction(y)
    if units[0] is None or units[1] is None:
        raise ValueError("a rotation needs two directions; found a vector that is zero or not finite")
    if len(x) == 1 and units[0] * units[1] < 0:
        raise ValueError("in one dimension no rotation takes x to -x; at least two dimensions are needed")
    return units[0], units[1]


def _turn(x: Tensor, y: Tensor) -> Tensor:
    s = x + y
    identity = torch.eye(len(x), dtype=x.dtype)
    return identity - 2 * torch.outer(s, s) / (s @ s) + 2 * torch.outer(y, x)


def angle_degrees(x: Float[Tensor, " dim"], y: Float[Tensor, " dim"]) -> float:
    """The angle between two unit vectors, exact close to 0 and 180 degrees too."""
    half = math.atan2(float(torch.linalg.vector_norm(x - y)), float(torch.linalg.vector_norm(x + y)))
    return math.degrees(2 * half)


class RollingQ(Strategy):
    """Rolling query.

    Differs from the paper: rho and beta are ours, since no available source states the paper's; `max_rotations` is
    1 as for two of its three data sets. The rotation is the one in the plane of query and anchor and the identity
    elsewhere; the paper's decomposition leaves the rest to chance (`rotation=svd`). With a query that is the same
    for all samples both give the same logits. Expectations are exact means over the train split in evaluation
    mode, and more than two modalities are balanced by softmax(-2 rho cos), triggered by the range of cosines. Of
    several sites the first over the threshold is rotated. `anchor=raw` weighs mean keys by their norms, as the
    first public version of the code did.

    `preset=released` does what the public code does: `rotation=svd`, `air=last_batch` and a trigger above beta
    instead of at beta, whatever these settings say; its unweighted mean of batch means is an error and is not
    repeated, and its defaults rho = beta = 0 are not taken over.
    """

    paper = (
        "Ni, Wei, Liu, Chen, Peng, Lin and Hu, "
        "RollingQ: Reviving the Cooperation Dynamics in Multimodal Transformer, ICML 2025"
    )
    reference = "GeWu-Lab/RollingQ_ICML2025 (no licence found)"
    home = "vanilla_mt"
    rotates = True

    @dataclass(frozen=True)
    class Settings(api.Settings):
        """When to rotate, how far past the balance, and by which means."""

        rho: float = setting(1.0, low=0.0, search=(0.0, 5.0), help="how far the anchor leans to the lagging keys")
        beta: float = setting(0.3, low=0.0, high=2.0, search=(0.05, 1.0), help="|AIR| from which on to rotate")
        max_rotations: int = setting(1, low=0, neutral=0, help="most rotations of one site")
        rotation: Literal["plane", "svd"] = setting(
            "plane", choices=("plane", "svd"), help="which rotation reaches the anchor"
        )
        anchor: Literal["normalised", "raw"] = setting(
            "normalised", choices=("normalised", "raw"), help="mean keys of length one, or not"
        )
        air: Literal["dataset", "last_batch"] = setting(
            "dataset", choices=("dataset", "last_batch"), help="where the cosines are measured"
        )
        preset: Literal["none", "released"] = setting("none", choices=("none", "released"), help="the public code")

    settings: Settings

    @classmethod
    def requires(cls, settings: Settings) -> frozenset[Capability]:
        """One query that competes over the keys of several modalities."""
        return frozenset({Capability.ATTENTION_SITE, Capability.SEVERAL_MODALITIES})

    @classmethod
    def extra_passes(cls, settings: Settings, num_epochs: int) -> Passes:
        """Every rotation takes the means over the train split: one forward pass, at most one per epoch and site."""
        return Passes(forwards=float(min(settings.max_rotations, num_epochs)))

    def decide(self, history: Sequence[EpochRecord]) -> Action | None:
        """Rotate the first site whose |AIR| reaches beta and that may still be rotated.

        Beta and the limit decide whether there is an action and are no part of it.
        """
        released = self.settings.preset == "released"
        air = "last_batch" if released else self.settings.air
        for site, record in history[-1].sites.items():
            cosines = record.last_batch if air == "last_batch" else record.cosines
            imbalance = abs(attention_imbalance(cosines))
            over = imbalance > self.settings.beta if released else imbalance >= self.settings.beta
            if over and record.num_rotations < self.settings.max_rotations:
                values = {
                    "site": site,
                    "rho": self.settings.rho,
                    "rotation": "svd" if released else self.settings.rotation,
                    "anchor": self.settings.anchor,
                    "air": air,
                }
                if air == "last_batch":
                    values["cosines"] = dict(cosines)
                return Action("rollingq", "rotate", values)
        return None

    def apply(self, run: Run, action: Action) -> None:
        """Rotate the query of the action's site onto the anchor; skip and log it where there is no direction."""
        values = action.values
        means = run.site_means(values["site"])
        cosines: Mapping[str, float] = values.get("cosines", means.cosines)
        weights = anchor_weights(cosines, values["rho"])
        run.log("rollingq/air_before", attention_imbalance(cosines))
        for m, weight in weights.items():
            run.log(f"rollingq/alpha/{m}", weight)
        query, anchor = direction(means.query), anchor_direction(means.keys, weights, values["anchor"])
        if query is None or anchor is None:
            run.log("rollingq/skipped", 1.0)
            return
        run.log("rollingq/angle_degrees", angle_degrees(query, anchor))
        # The measured query is already rotated, so that the new rotation goes on top of the old ones.
        run.model.fusion.sites()[values["site"]].rotate(ROTATIONS[values["rotation"]](query, anchor))
