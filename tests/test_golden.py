"""Losses of one fixed tiny training, as numbers: they may move only together with `NUMERICS_VERSION`."""

from __future__ import annotations

import pytest

from bench.plan import NUMERICS_VERSION
from tests.training import losses_of, training_of

GOLDEN: dict[int, dict[str, list[dict[str, float]]]] = {
    1: {
        "concat": [
            {"joint": 1.221983, "probe/audio": 1.800206, "probe/visual": 1.892113},
            {"joint": 0.557089, "probe/audio": 1.378501, "probe/visual": 1.433962},
            {"joint": 0.364644, "probe/audio": 0.982696, "probe/visual": 1.167929},
        ],
        "vanilla_mt": [
            {"joint": 1.239734, "probe/audio": 2.002104, "probe/visual": 1.943264},
            {"joint": 0.928569, "probe/audio": 1.781490, "probe/visual": 1.748099},
            {"joint": 0.761267, "probe/audio": 1.462333, "probe/visual": 1.571770},
        ],
        "vanilla_mt+rollingq:beta=0:rho=1": [
            {"joint": 1.239734, "probe/audio": 2.002104, "probe/visual": 1.943264},
            {"joint": 0.929703, "probe/audio": 1.781267, "probe/visual": 1.748209},
            {"joint": 0.764568, "probe/audio": 1.463189, "probe/visual": 1.571848},
        ],
    }
}
TOLERANCE = 1e-4
"""Relative: other processors and versions of torch move the sixth digit, another algorithm moves the third."""
METHODS = ("concat", "vanilla_mt", "vanilla_mt+rollingq:beta=0:rho=1")


@pytest.mark.parametrize("method", METHODS)
def test_the_harness_trains_to_the_losses_written_here(method: str) -> None:
    found = losses_of(training_of(method))
    assert NUMERICS_VERSION in GOLDEN, (
        f"NUMERICS_VERSION is {NUMERICS_VERSION} and no losses are written for it; add those this test finds: {found}"
    )
    for epoch, (losses, golden) in enumerate(zip(found, GOLDEN[NUMERICS_VERSION][method], strict=True)):
        assert losses == pytest.approx(golden, rel=TOLERANCE), (
            f"{method}: the losses of epoch {epoch} moved. If that was not meant, undo it; if it was, raise "
            f"NUMERICS_VERSION in bench/plan.py, so that no stored trial is taken for one with the new numbers, and "
            f"write these here: {found}"
        )


def test_the_rotation_moves_the_losses_after_it_and_not_before() -> None:
    plain, rolled = (GOLDEN[NUMERICS_VERSION][method] for method in METHODS[1:])
    assert plain[0] == rolled[0]
    assert plain[2]["joint"] != pytest.approx(rolled[2]["joint"], rel=10 * TOLERANCE)
