"""Encoders: what happens to edges and frames, how pretrained weights arrive, and what is refused."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from bench import encoders
from bench.api import Encoder, EncoderSpec
from bench.encoders import weights
from bench.errors import RequestError

SMALL = EncoderSpec("vit", dim=32, depth=2, heads=4)
TAG = "vit_tiny_patch16_224.augreg_in21k"


def timm_vit(**changed: Any) -> Any:
    torch.manual_seed(0)
    settings = {"embed_dim": 32, "num_heads": 4, "depth": 3, "img_size": 64, "num_classes": 5} | changed
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, **settings)
    for parameter in model.parameters():  # biases and norms too, so that one that is not loaded is seen
        torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def saved(file: Path, state: dict[str, Tensor]) -> str:
    if file.suffix == ".safetensors":
        file.write_bytes(save({k: v.contiguous() for k, v in state.items()}))
    else:
        torch.save(state, file)
    return str(file)


@pytest.fixture(scope="module")
def reference() -> Any:
    return timm_vit()


@pytest.fixture(scope="module", params=["x.safetensors", "x.pth"])
def file(request: pytest.FixtureRequest, reference: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("weights") / request.param, reference.state_dict())


def built(shape: tuple[int, ...], spec: EncoderSpec = SMALL, **changed: Any) -> Any:
    torch.manual_seed(1)
    return encoders.build(dataclasses.replace(spec, **changed), shape).eval()


def test_pretrained_blocks_are_those_of_the_file(reference: Any, file: str) -> None:
    encoder = built((3, 64, 64), weights=file, depth=3)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x).x, reference.forward_features(x), rtol=0, atol=1e-5)
    for stage, block in zip(built((3, 64, 64), weights=file).stages, reference.blocks[:2], strict=True):
        for name, value in block.state_dict().items():
            assert torch.equal(stage.block.state_dict()[name], value), name


def test_one_channel_sums_the_kernels_and_other_sizes_resample_the_positions(reference: Any, file: str) -> None:
    encoder = built((1, 40, 70), weights=file)
    assert torch.allclose(encoder.patch_embed.proj.weight, reference.patch_embed.proj.weight.sum(1, keepdim=True))
    assert torch.equal(encoder.patch_embed.proj.bias, reference.patch_embed.proj.bias)
    assert torch.equal(encoder.class_token, reference.cls_token)
    expected = resample_abs_pos_embed(reference.pos_embed, [3, 5], [4, 4], num_prefix_tokens=1)
    assert torch.allclose(encoder.positions, expected, atol=1e-6)
    assert torch.equal(encoder.norm.weight, reference.norm.weight)


def test_a_file_without_query_biases_is_read_and_they_stay_zero(reference: Any, tmp_path: Path) -> None:
    state = {k: v for k, v in reference.state_dict().items() if not k.endswith("qkv.bias")}
    encoder = built((3, 64, 64), weights=saved(tmp_path / "x.safetensors", state))
    assert not encoder.stages[0].block.attn.qkv.bias.any()


def cached(folder: Path, monkeypatch: pytest.MonkeyPatch, state: dict[str, Tensor], tag: str = TAG) -> None:
    """A hub cache that holds one file."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    home = folder / f"models--timm--{tag}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("abc")
    (home / "snapshots" / "abc").mkdir(parents=True)
    saved(home / "snapshots" / "abc" / "model.safetensors", state)


def test_a_tag_is_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm_vit(embed_dim=192, num_heads=3, depth=2, img_size=224)
    cached(tmp_path, monkeypatch, model.state_dict())
    tiny = EncoderSpec("vit", dim=192, depth=2, heads=3, weights=TAG)
    encoder = built((1, 32, 48), tiny)
    assert torch.equal(encoder.stages[1].block.mlp.fc2.bias, model.blocks[1].mlp.fc2.bias)
    with pytest.raises(RequestError, match="has 3 heads, the encoder has heads=4"):
        built((1, 32, 48), tiny, heads=4)
    with pytest.raises(RequestError, match="width 192, the encoder has dim=64"):
        weights.refuse_unusable(dataclasses.replace(tiny, dim=64))


def test_without_a_network_a_tag_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for offline in (True, False):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
        monkeypatch.setenv("HTTPS_PROXY", "")
        started = time.perf_counter()
        with pytest.raises(RequestError) as caught:
            weights.refuse_unusable(dataclasses.replace(SMALL, weights=TAG))
        assert time.perf_counter() - started < 2
        for part in (TAG, "weights=PATH", "weights=none"):
            assert part in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"dim": 64}, "width 32, the encoder has dim=64"),
        ({"depth": 4}, "of a ViT with 4 blocks are not there, 'blocks.3.norm1.weight'"),
    ],
)
def test_weights_that_do_not_fit_are_refused(file: str, changed: dict[str, int], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        built((3, 64, 64), weights=file, **changed)


def test_what_is_no_file_of_weights_is_refused(tmp_path: Path) -> None:
    for name in ("x.safetensors", "x.pth"):
        with pytest.raises(RequestError, match="there is no file"):
            built((3, 64, 64), weights=str(tmp_path / name))
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(RequestError, match=r"no safetensors file|no file of weights"):
            built((3, 64, 64), weights=str(tmp_path / name))
    with pytest.raises(RequestError, match="name no tag"):
        built((3, 64, 64), weights="vit_base_patch16_224")
    with pytest.raises(RequestError, match="a sequence encoder has none"):
        weights.refuse_unusable(EncoderSpec("sequence", weights=TAG))


@pytest.mark.parametrize(("edge", "grid"), [("pad", (3, 5)), ("crop", (2, 4))])
def test_edges_are_padded_or_cut_as_stated(edge: Any, grid: tuple[int, int]) -> None:
    encoder = built((1, 40, 70), edge=edge)
    x = torch.randn(2, 1, 40, 70)
    fitted = torch.zeros(2, 1, 16 * grid[0], 16 * grid[1])
    height, width = min(40, fitted.shape[2]), min(70, fitted.shape[3])
    fitted[..., :height, :width] = x[..., :height, :width]
    with torch.no_grad():
        tokens = encoder.stem(x)
        assert tokens.x.shape == (2, 1 + grid[0] * grid[1], 32)
        assert torch.equal(tokens.x[:, 1:], encoder.patch_embed(fitted) + encoder.positions[:, 1:])
        last = x.clone()
        last[..., -1, -1] += 5
        assert torch.equal(encoder.stem(last).x, tokens.x) == (edge == "crop")


def test_frames_are_one_sequence_behind_one_class_token() -> None:
    encoder = built((3, 2, 32, 32))
    torch.nn.init.normal_(encoder.frame_positions)
    clip = torch.randn(2, 3, 2, 32, 32)
    with torch.no_grad():
        tokens = encoder.stem(clip).x
        assert tokens.shape == (2, 1 + 2 * 4, 32)
        for frame in range(2):
            one = encoder.patch_embed(clip[:, :, frame]) + encoder.positions[:, 1:] + encoder.frame_positions[:, frame]
            assert torch.allclose(tokens[:, 1 + 4 * frame : 5 + 4 * frame], one, atol=1e-6)


def test_two_encoders_of_the_paper_have_its_parameters_and_tokens() -> None:
    spec = EncoderSpec("vit", dim=768, depth=4, heads=12, edge="crop")
    with torch.device("meta"):
        audio, visual = (encoders.build(spec, shape) for shape in ((1, 188, 257), (3, 1, 224, 224)))
        tokens = [audio.stem(torch.zeros(1, 1, 188, 257)).x, visual.stem(torch.zeros(1, 3, 1, 224, 224)).x]
    assert [t.shape[1] for t in tokens] == [177, 197]
    assert sum(p.numel() for p in audio.stages[0].parameters()) == 7_087_872
    counted = [
        p.numel() for e in (audio, visual) for n, p in e.named_parameters() if n not in ("class_token", "positions")
    ]
    assert sum(counted) == 57_494_016


RESNET = EncoderSpec("resnet", dim=24)


@pytest.mark.parametrize(("shape", "tokens"), [((1, 64, 96), 6), ((3, 70, 70), 9), ((3, 2, 64, 32), 4)])
def test_the_last_map_of_a_resnet_becomes_tokens(shape: tuple[int, ...], tokens: int) -> None:
    encoder: Encoder = built(shape, RESNET)
    x = torch.randn(2, *shape)
    with torch.no_grad():
        found = encoder(x)
        assert found.x.shape == (2, tokens, 24)
        assert (found.has_class_token, len(encoder.stages), found.mask) == (False, 0, None)
        if len(shape) == 4:
            half = encoder(x[:, :, 1:]).x
            assert torch.allclose(found.x[:, 2:], half, atol=1e-5)


def test_a_resnet_starts_from_pretrained_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    reference = timm.create_model("resnet18", pretrained=False, num_classes=1000).eval()
    named = saved(tmp_path / "x.pth", reference.state_dict())
    cached(tmp_path, monkeypatch, reference.state_dict(), "resnet18.tv_in1k")
    for given in (named, "resnet18.tv_in1k"):
        colour, grey = built((3, 64, 64), RESNET, weights=given), built((1, 64, 64), RESNET, weights=given)
        x = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            assert torch.equal(colour.backbone(x), reference.forward_features(x))
        assert torch.allclose(grey.backbone.conv1.weight, reference.conv1.weight.sum(1, keepdim=True))
    with pytest.raises(RequestError, match="not those of a resnet18"):
        built((3, 64, 64), RESNET, weights=TAG)
    partial = {k: v for k, v in reference.state_dict().items() if "layer4.1" not in k}
    with pytest.raises(RequestError, match=r"layer4\.1"):
        built((3, 64, 64), RESNET, weights=saved(tmp_path / "y.safetensors", partial))


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_a_vector_is_no_image(family: Any) -> None:
    with pytest.raises(ValueError, match=r"takes \[C, H, W\]"):
        built((7,), dataclasses.replace(SMALL, family=family))
