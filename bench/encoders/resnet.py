"""timm's ResNet-18 over images [C, H, W] or several frames [C, frames, H, W]; its last map becomes the tokens."""

from __future__ import annotations

from typing import Any

import timm
from torch import Tensor, nn

from bench.api import Encoder, EncoderSpec, Tokens
from bench.encoders import weights
from bench.errors import RequestError
from bench.layers import xavier

ARCHITECTURE, WIDTH = "resnet18", 512


class ResNetEncoder(Encoder):
    """The H x W map of the last stage, flattened and projected to `dim`; no class token, positions or stages.

    `depth`, `heads`, `patch` and `edge` have no meaning here: convolutions pad, so that nothing is cut. The maps of
    several frames follow one another. Pretrained RGB kernels are summed for one channel.
    """

    def __init__(self, spec: EncoderSpec, shape: tuple[int, ...]) -> None:
        super().__init__()
        if len(shape) not in (3, 4):
            raise ValueError(f"the resnet encoder takes [C, H, W] or [C, frames, H, W], not {list(shape)}")
        self.dim = spec.dim
        self.backbone = _backbone(spec.weights, shape[0])
        self.project = nn.Linear(WIDTH, spec.dim)
        self.stages = nn.ModuleList()
        self.norm = nn.Identity()
        xavier(self.project)

    def stem(self, x: Tensor, mask: Tensor | None = None) -> Tokens:
        """Positions of all frames [batch, frames x height x width, dim]."""
        del mask  # images have no padding
        batch = x.shape[0]
        if x.ndim == 5:
            x = x.transpose(1, 2).flatten(0, 1)  # [B, C, frames, H, W] -> [B x frames, C, H, W]
        maps: Tensor = self.backbone(x)  # [B x frames, 512, h, w]
        positions = maps.flatten(2).transpose(1, 2)  # [B x frames, h x w, 512]
        return Tokens(self.project(positions.reshape(batch, -1, positions.shape[-1])), has_class_token=False)


def _backbone(named: str, channels: int) -> nn.Module:
    settings: dict[str, Any] = {"in_chans": channels, "num_classes": 0, "global_pool": ""}
    if named == "none":
        return timm.create_model(ARCHITECTURE, pretrained=False, **settings)
    if not weights.is_path(named) and named.partition(".")[0] != ARCHITECTURE:
        raise RequestError(f"encoder weights {named!r} are not those of a {ARCHITECTURE}, such as resnet18.tv_in1k")
    file = weights.locate(named)
    found = weights.shapes(file)
    # What BatchNorm counts is no weight, and older files lack it.
    needed = [n for n in timm.create_model(ARCHITECTURE, **settings).state_dict() if not n.endswith("batches_tracked")]
    missing = [name for name in needed if name not in found]
    if missing:
        raise RequestError(f"{file}: {len(missing)} weights of {ARCHITECTURE} are not there, {missing[0]!r} among them")
    name = ARCHITECTURE if weights.is_path(named) else named
    with weights.quiet():
        try:
            return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(file)}, **settings)
        except RuntimeError as error:
            raise RequestError(f"{file}: these weights do not fit {name} ({error})") from error
