"""Pretrained weights: found on disk, in the hub's cache or on the hub, and refused early with a reason."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from bench.api import EncoderSpec
from bench.errors import RequestError
from bench.network import unreachable

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
REACH = 1.5
"""Seconds in which the hub has to answer; without this check its client tries again for almost a minute."""
WIDTH_OF = {"vit": "cls_token"}
"""Family -> the weight whose last axis is the encoder's width."""


def locate(weights: str) -> Path:
    """The file that holds these weights: a path, or a timm tag from the hub's cache or, once, from the hub.

    Raises RequestError, within two seconds if the hub cannot be reached.
    """
    if is_path(weights):
        file = Path(weights).expanduser()
        if not file.is_file():
            raise RequestError(f"encoder weights: there is no file {file.absolute()}; give another, or weights=none")
        return file
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    if "." not in weights:
        raise RequestError(
            f"encoder weights {weights!r} name no tag, and what a bare name means changes with timm; write one, such "
            "as vit_base_patch16_224.augreg_in21k, or the path of a .safetensors or .pth file, or weights=none"
        )
    repository = f"timm/{weights}"
    for name in HUB_FILES:
        cached = try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return Path(cached)
    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else unreachable(constants.ENDPOINT, REACH)
    if reason:
        raise RequestError(_missing(weights, reason))
    said = ""
    for name in HUB_FILES:
        try:
            return Path(hf_hub_download(repository, name))
        except Exception as error:  # its errors have no common base: HTTP, validation and file system
            said = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no text'}"
    raise RequestError(_missing(weights, said))


def is_path(weights: str) -> bool:
    """Whether weights are named by the path of a file and not by a timm tag."""
    return weights.endswith(SUFFIXES) or os.sep in weights or Path(weights).expanduser().is_file()


def refuse_unusable(spec: EncoderSpec) -> None:
    """Raise RequestError if a modality's pretrained weights are absent or of another width than its encoder."""
    if spec.weights == "none":
        return
    if spec.family not in ("vit", "resnet"):
        raise RequestError(f"encoder weights {spec.weights!r}: a {spec.family} encoder has none; give weights=none")
    file = locate(spec.weights)
    if spec.family in WIDTH_OF:
        found = shapes(file).get(WIDTH_OF[spec.family])
        if found is not None and found[-1] != spec.dim:
            raise RequestError(
                f"{file}: these weights have width {found[-1]}, the encoder has dim={spec.dim}; make them equal"
            )


def content_hash(spec: EncoderSpec) -> str:
    """SHA-256 of a modality's pretrained weights, empty without; RequestError where they cannot be used."""
    if spec.weights == "none":
        return ""
    refuse_unusable(spec)
    return _hashed(locate(spec.weights))


@cache
def _hashed(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every weight in a file, by name; of a .safetensors file only the head is read."""
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, framework="np") as opened:
                return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118  # not a dict
        except (SafetensorError, OSError) as error:
            raise RequestError(f"{file}: no safetensors file ({error})") from error
    import torch

    try:
        found = torch.load(file, map_location="meta", weights_only=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError, ValueError) as error:
        first = str(error).strip().splitlines()
        raise RequestError(f"{file}: no file of weights ({first[0] if first else type(error).__name__})") from error
    for key in ("state_dict", "model"):
        found = found.get(key, found) if isinstance(found, dict) else {}
    return {
        name.removeprefix("module."): tuple(value.shape)
        for name, value in found.items()
        if isinstance(value, torch.Tensor)
    }


@contextmanager
def quiet() -> Iterator[None]:
    """Without timm's list of the blocks that a shorter encoder leaves out."""
    logger = logging.getLogger("timm")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _missing(weights: str, reason: str) -> str:
    return (
        f"encoder weights {weights!r} are not on this machine and cannot be fetched ({reason}); fetch "
        f"huggingface.co/timm/{weights} where there is a network, give the path of a .safetensors or .pth file "
        "(weights=PATH), or weights=none"
    )
