"""RollingQ: when one modality has taken over the attention, rotate the query towards a balance of all keys.

In a multimodal transformer the query drifts towards the keys of the modality that is learned faster, whose keys
grow and attract it further, whatever a sample's quality. The attention imbalance rate (AIR) shows this; when it
passes a threshold the query is rotated once onto an anchor between the mean keys, and training goes on from there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
    SiteMeans,
    SiteRecord,
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


def rotation_is_due(
    cosines: Sequence[Mapping[str, float]],
    rotations: Sequence[int],
    beta: float,
    *,
    cooldown: int,
    release: float,
    settle: int,
) -> bool:
    """Whether to rotate after the last of these epochs, by the adaptive schedule.

    `cosines` has E[cos] per modality for every epoch so far, `rotations` the number of rotations before it. |AIR|
    has to be at least beta, and after a rotation also:

    - `cooldown` epochs were trained since;
    - the imbalance is a relapse: the modality that led before the rotation leads again, or |AIR| was at most
      release x beta in between. A rotation with rho > 0 hands the lead over on purpose; that alone is no relapse;
    - it never stayed at or below release x beta for `settle` epochs in a row: then the schedule has finished.
    """
    imbalances = [abs(attention_imbalance(c)) for c in cosines]
    if not imbalances[-1] >= beta:
        return False
    turned = [e for e in range(1, len(rotations)) if rotations[e] > rotations[e - 1]]
    if not turned:
        return True
    calm = [imbalance <= release * beta for imbalance in imbalances[turned[0] :]]
    if any(all(calm[e : e + settle]) for e in range(len(calm) - settle + 1)):
        return False
    since, before = cosines[turned[-1] :], cosines[turned[-1] - 1]
    relapsed = leading(cosines[-1]) == leading(before) or any(calm[turned[-1] - turned[0] :])
    return len(since) >= cooldown and relapsed


def leading(cosines: Mapping[str, float]) -> str:
    """The modality whose mean keys are closest to the query."""
    return max(cosines, key=lambda m: cosines[m])


class RollingQ(Strategy):
    """Rolling query.

    Differs from the paper: rho and beta are ours, since no available source states the paper's; `max_rotations` is
    1 as for two of its three data sets. The rotation is the one in the plane of query and anchor and the identity
    elsewhere; the paper's decomposition leaves the rest to chance (`rotation=svd`). With a query that is the same
    for all samples both give the same logits. Expectations are exact means over the train split in evaluation
    mode, and more than two modalities are balanced by softmax(-2 rho cos), triggered by the range of cosines.
    `anchor=raw` weighs mean keys by their norms, as the first public version of the code did.

    The paper rotates several layers one after the other, without details. Ours: of L sites, bottom up, the l-th may
    be rotated in the l-th stretch of E / L epochs (rounded down; the last site also in what is left) and in no
    other; `progressive=false` rotates the first site over the threshold at any time. Where an attention has several
    heads, anchor and rotation are each head's own, and the trigger looks at the mean over heads. Queries that
    depend on the sample or the head are rotated in the plane only: the decomposition would scatter what samples
    differ by.

    `schedule=adaptive` is ours: how often to rotate is decided by the course of AIR (`rotation_is_due`), and
    `max_rotations` is ignored. Every rotation then leaves at least `cooldown` epochs to learn from it.

    `preset=released` does what the public code does: `rotation=svd`, `air=last_batch`, `schedule=fixed` and a
    trigger above beta instead of at beta, whatever these settings say; its unweighted mean of batch means is an error
    and is not repeated, and its defaults rho = beta = 0 are not taken over.
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

        rho: float = setting(
            1.0, low=0.0, search=(0.0, 4.5), levels=10, help="how far the anchor leans to the lagging keys"
        )
        beta: float = setting(0.3, low=0.0, high=2.0, search=(0.05, 1.0), help="|AIR| from which on to rotate")
        max_rotations: int = setting(1, low=0, neutral=0, help="most rotations of one site (schedule=fixed)")
        schedule: Literal["fixed", "adaptive"] = setting(
            "fixed", choices=("fixed", "adaptive"), help="up to max_rotations, or as often as AIR asks for it"
        )
        cooldown: int = setting(2, low=1, high=100, help="epochs between two rotations of a site (adaptive)")
        release: float = setting(
            0.5, low=0.0, high=1.0, help="|AIR| at most this times beta counts as balanced (adaptive)"
        )
        settle: int = setting(4, low=1, high=100, help="balanced epochs in a row that end the schedule (adaptive)")
        progressive: bool = setting(True, help="with several sites: one after the other, bottom up")
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
        """One query that competes over the keys of several modalities; all samples' for a rotation by SVD."""
        by_svd = settings.rotation == "svd" or settings.preset == "released"
        shared = {Capability.SHARED_QUERY} if by_svd else set()
        return frozenset({Capability.ATTENTION_SITE, Capability.SEVERAL_MODALITIES}) | shared

    @classmethod
    def extra_passes(cls, settings: Settings, num_epochs: int) -> Passes:
        """Every rotation of a site takes the means over the train split: one forward pass, at most one per epoch."""
        if _is_adaptive(settings):
            return Passes(forwards=float(max(0, num_epochs - 1) // settings.cooldown))
        return Passes(forwards=float(min(settings.max_rotations, num_epochs)))

    def decide(self, history: Sequence[EpochRecord]) -> Action | None:
        """Rotate the first site whose turn it is, whose |AIR| reaches beta and whose schedule allows it.

        All of these decide whether there is an action and are no part of it.
        """
        for site in self._sites_in_turn(history[-1]):
            if self._is_due([record.sites[site] for record in history if site in record.sites], history[-1]):
                return self._rotation(site, history[-1].sites[site])
        return None

    def _sites_in_turn(self, record: EpochRecord) -> list[str]:
        """The sites that may be rotated after this epoch."""
        sites = list(record.sites)
        if len(sites) < 2 or not self.settings.progressive:
            return sites
        stage = record.epoch // max(1, record.num_epochs // len(sites))
        return [sites[min(stage, len(sites) - 1)]]

    def _is_due(self, course: Sequence[SiteRecord], now: EpochRecord) -> bool:
        s = self.settings
        cosines = [self._cosines(record) for record in course]
        if _is_adaptive(s):
            left = now.num_epochs - now.epoch - 1
            if now.num_epochs and left < s.cooldown:
                return False
            rotations = [record.num_rotations for record in course]
            return rotation_is_due(cosines, rotations, s.beta, cooldown=s.cooldown, release=s.release, settle=s.settle)
        imbalance = abs(attention_imbalance(cosines[-1]))
        over = imbalance > s.beta if s.preset == "released" else imbalance >= s.beta
        return over and course[-1].num_rotations < s.max_rotations

    def _cosines(self, record: SiteRecord) -> Mapping[str, float]:
        return record.last_batch if self._air == "last_batch" else record.cosines

    @property
    def _air(self) -> Literal["dataset", "last_batch"]:
        return "last_batch" if self.settings.preset == "released" else self.settings.air

    def _rotation(self, site: str, record: SiteRecord) -> Action:
        values: dict[str, Any] = {
            "site": site,
            "rho": self.settings.rho,
            "rotation": "svd" if self.settings.preset == "released" else self.settings.rotation,
            "anchor": self.settings.anchor,
            "air": self._air,
        }
        if self._air == "last_batch":
            values["cosines"] = dict(record.last_batch)
        return Action("rollingq", "rotate", values)

    def apply(self, run: Run, action: Action) -> None:
        """Rotate the query of the action's site onto the anchor, head by head.

        A head without a direction is left alone; the log holds the share of those. The last batch's cosines are
        known as means over heads, so that by `air=last_batch` the anchors of all heads have the same weights.
        """
        values = action.values
        site = run.model.fusion.sites()[values["site"]]
        means = run.site_means(values["site"])
        given: Mapping[str, float] | None = values.get("cosines")
        run.log("rollingq/air_before", attention_imbalance(given or means.cosines))
        turns = [self._turn_of(run, action, part, given or part.cosines) for part in _heads_of(means, site.heads)]
        lost = sum(turn is None for turn in turns)
        if lost:
            run.log("rollingq/skipped", lost / len(turns))
        if lost < len(turns):
            still = torch.eye(len(means.query) // site.heads, dtype=torch.float64)
            # The measured query is already rotated, so that the new rotation goes on top of the old ones.
            site.rotate(torch.block_diag(*(still if turn is None else turn for turn in turns)))

    @staticmethod
    def _turn_of(run: Run, action: Action, means: SiteMeans, cosines: Mapping[str, float]) -> Tensor | None:
        """The rotation of one head; None where query or anchor have no direction, or one channel leaves no room."""
        weights = anchor_weights(cosines, action.values["rho"])
        for m, weight in weights.items():
            run.log(f"rollingq/alpha/{m}", weight)
        query, anchor = direction(means.query), anchor_direction(means.keys, weights, action.values["anchor"])
        if query is None or anchor is None or len(query) == 1:
            return None
        run.log("rollingq/angle_degrees", angle_degrees(query, anchor))
        return ROTATIONS[action.values["rotation"]](query, anchor)


def _is_adaptive(settings: RollingQ.Settings) -> bool:
    return settings.schedule == "adaptive" and settings.preset == "none"


def _heads_of(means: SiteMeans, heads: int) -> list[SiteMeans]:
    """The means of every head by itself."""
    if heads == 1:
        return [means]
    queries = means.query.chunk(heads)
    return [
        SiteMeans(
            query=query,
            query_norm=float(torch.linalg.vector_norm(query)),
            keys={m: key.chunk(heads)[head] for m, key in means.keys.items()},
            cosines={m: cosines[head] for m, cosines in means.head_cosines.items()},
        )
        for head, query in enumerate(queries)
    ]
