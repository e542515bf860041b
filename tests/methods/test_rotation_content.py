"""In every layer and head whose queries depend on the sample, only the plane rotation keeps what samples differ by."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench import names
from bench.analysis.geometry import shown
from bench.api import Action
from bench.conformance.world import Subject, World
from bench.train import Training

MODALITIES = ("text", "motion")
METHOD = "vanilla_mt:layers=3:heads=2+rollingq:beta=0"


def queries(training: Training, site: str) -> Tensor:
    """The queries [sample, heads, width] that compete at a site, for every sample."""
    place = training.model.fusion.sites()[site]
    with shown({site: place}) as seen:
        for _ in training.sweep():
            pass
    return torch.cat([s.query for s in seen[site]]).unflatten(1, (place.heads, -1)).double()


def content_kept(site: str, rotation: str) -> Tensor:
    """By head, the cosine of what a sample's query differs by before and after a rotation, the mean over samples."""
    method = names.resolve_method(METHOD, MODALITIES)
    strategies = {part.name: (part.plugin, part.settings) for part in method.strategies}
    training = Subject(method.base.plugin, method.base.settings, strategies).training(
        World(MODALITIES, widths=(96, 96))
    )
    before = queries(training, site)
    values = {"site": site, "rho": 1.0, "rotation": rotation, "anchor": "normalised", "air": "dataset"}
    training.apply(Action("rollingq", "rotate", values))
    old, new = (q - q.mean(dim=0) for q in (before, queries(training, site)))
    return F.cosine_similarity(old, new, dim=2).mean(dim=0)


@pytest.mark.parametrize("site", ["further.0.attention.site", "further.1.attention.site"])
def test_content_survives_the_plane_and_not_the_decomposition(site):
    by_plane, by_svd = (content_kept(site, rotation) for rotation in ("plane", "svd"))
    assert by_plane.shape == (2,)
    assert float(by_plane.min()) > 0.8
    assert float(by_svd.abs().max()) < 0.4
