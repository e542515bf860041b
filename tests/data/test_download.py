"""Downloads, through the real urllib with a transport that answers from a dictionary."""

from __future__ import annotations

import gzip
import hashlib
import io
import stat
import time
import urllib.request
import zipfile
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.response import addinfourl

import pytest

from bench import plugins
from bench.api import DataError, DataSet
from bench.data import download

AV_MNIST = plugins.load("datasets", "av_mnist")
ASKED: list[str] = []
Answers = dict[str, bytes | Callable[[], bytes]]


class Transport(urllib.request.HTTPSHandler):
    def __init__(self, answers: Answers) -> None:
        super().__init__()
        self.answers = answers

    def https_open(self, req: urllib.request.Request) -> Any:
        """What is known of an address, else what a machine without a network says."""
        ASKED.append(req.full_url)
        if req.full_url not in self.answers:
            raise OSError("network is unreachable")
        answer = self.answers[req.full_url]
        body = answer if isinstance(answer, bytes) else answer()
        return answered(req, body, 302 if body.startswith(b"to ") else 200)


class Plain(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> Any:
        """What was asked for, over plain http."""
        return answered(req, b"abc", 200)


def answered(req: urllib.request.Request, body: bytes, code: int) -> addinfourl:
    headers = Message()
    if code == 302:
        headers["Location"], body = body[3:].decode(), b""
    response = addinfourl(io.BytesIO(body), headers, req.full_url, code)
    response.msg = "OK"  # type: ignore[attr-defined]  # what urllib looks at when it handles a redirect
    return response


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answers], None]:
    monkeypatch.setattr(download, "unreachable", lambda address, seconds: "")
    ASKED.clear()

    def start(answers: Answers) -> None:
        opener = urllib.request.build_opener(Transport(answers), Plain, urllib.request.ProxyHandler({}))
        monkeypatch.setattr(urllib.request, "_opener", opener)

    return start


def is_abc(path: Path) -> str:
    return "" if path.read_bytes() == b"abc" else "is not abc"


def left(folder: Path) -> list[str]:
    """What lies there but for locks."""
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock")


def test_the_first_sound_mirror_is_used_and_nothing_else_stays(tmp_path: Path, serve: Any) -> None:
    serve({"https://b/x": b"abd", "https://c/x": b"abc", "https://d/x": b"abc"})
    download.fetch([f"https://{host}/x" for host in "abcd"], tmp_path / "new" / "x", 10, is_abc)
    assert [url[8] for url in ASKED] == ["a", "b", "c"]
    assert left(tmp_path / "new") == ["x"]
    assert (tmp_path / "new" / "x").read_bytes() == b"abc"
    assert stat.S_IMODE((tmp_path / "new" / "x").stat().st_mode) & 0o444 == 0o444
    download.fetch(["https://a/x"], tmp_path / "new" / "x", 10, is_abc)
    assert len(ASKED) == 3


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"abd", "is not abc"),
        (b"a" * 100, "longer than 10 bytes"),
        (b"to http://plain/x", "which is not https"),
    ],
)
def test_what_is_wrong_leaves_nothing(tmp_path: Path, serve: Any, answer: bytes, said: str) -> None:
    serve({"https://a/x": answer})
    with pytest.raises(DataError, match=said) as caught:
        download.fetch(["https://a/x"], tmp_path / "x", 10, is_abc)
    assert "https://a/x" in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert left(tmp_path) == []


def test_only_https(tmp_path: Path) -> None:
    for address in ("http://a/x", "file:///etc/hostname"):
        with pytest.raises(ValueError, match="https only"):
            download.fetch([address], tmp_path / "x", 10, is_abc)


def test_without_a_network_the_error_comes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "")
    monkeypatch.setattr(download, "REACH", 1.0)
    started = time.perf_counter()
    with pytest.raises(DataError, match="by hand"):
        download.fetch(["https://one.invalid/x", "https://two.invalid/x"], tmp_path / "x", 10, is_abc)
    assert time.perf_counter() - started < 5
    assert left(tmp_path) == []


def test_content_is_checked_not_its_wrapper(tmp_path: Path) -> None:
    md5 = hashlib.md5(b"abc").hexdigest()
    for level in (1, 9):
        (tmp_path / "x.gz").write_bytes(gzip.compress(b"abc", level))
        assert download.content_md5(tmp_path / "x.gz", 10) == md5
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(1 << 20)))
    assert download.content_md5(tmp_path / "bomb.gz", 1000) == ""
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"abc")[:-3])
    assert download.content_md5(tmp_path / "cut.gz", 1000) == ""


def published(monkeypatch: pytest.MonkeyPatch, recordings: int = 3) -> tuple[DataSet, Answers]:
    """av_mnist with sources as small as a test: their addresses answer, their checksums are right."""
    import bench.plugins.datasets.av_mnist as module  # type: ignore[import-not-found]  # found by plugins.__path__

    raw = {name: name.encode() * 100 for name in module.FILES}
    monkeypatch.setattr(module, "FILES", {name: hashlib.md5(content).hexdigest() for name, content in raw.items()})
    archive = io.BytesIO()
    clips = {f"{k}_ann_0.wav": bytes([k]) * 10 for k in range(recordings)}
    with zipfile.ZipFile(archive, "w") as packed:
        for name, content in reversed(clips.items()):
            packed.writestr(f"free-spoken-digit-dataset-x/recordings/{name}", content)
    digests = b"".join(hashlib.md5(content).digest() for _, content in sorted(clips.items()))
    monkeypatch.setattr(module, "SPOKEN", hashlib.md5(digests).hexdigest())
    answers: Answers = {f"{module.MIRRORS[1]}/{name}.gz": gzip.compress(content) for name, content in raw.items()}
    answers[module.SPEECH] = archive.getvalue()
    return AV_MNIST.plugin(AV_MNIST.plugin.Settings()), answers


def test_av_mnist_is_fetched_whole_and_once(tmp_path: Path, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, answers = published(monkeypatch)
    serve(answers)
    assert dataset.unusable(tmp_path) is not None
    dataset.fetch(tmp_path)
    assert dataset.unusable(tmp_path) is None
    assert len(left(tmp_path / "av_mnist")) == 5
    asked = len(ASKED)
    dataset.fetch(tmp_path)
    assert len(ASKED) == asked


def test_av_mnist_completes_the_folder_that_holds_a_part(
    tmp_path: Path, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, answers = published(monkeypatch)
    serve(answers)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"here already")
    dataset.fetch(tmp_path)
    assert dataset.unusable(tmp_path) is None
    assert not (tmp_path / "av_mnist").exists()
    assert not any("train-images" in url for url in ASKED)


def test_av_mnist_refuses_what_is_not_the_published_content(
    tmp_path: Path, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, answers = published(monkeypatch)
    address = next(a for a in answers if a.endswith("t10k-labels-idx1-ubyte.gz"))
    serve({**answers, address: gzip.compress(b"something else")})
    with pytest.raises(DataError, match=r"the content has MD5 \w+ instead of"):
        dataset.fetch(tmp_path)
    assert len(left(tmp_path / "av_mnist")) == 3
    speech = next(a for a in answers if a.endswith(".zip"))
    for wrong in (b"no archive", published(monkeypatch, 2)[1][speech]):
        dataset, answers = published(monkeypatch)
        serve({**answers, speech: wrong})
        with pytest.raises(DataError, match=r"no archive|2 recordings have MD5"):
            dataset.fetch(tmp_path)
    assert dataset.unusable(tmp_path) is not None


def test_the_recorded_checksum_is_that_of_the_archive() -> None:
    import bench.plugins.datasets.av_mnist as module  # type: ignore[import-not-found]  # found by plugins.__path__

    here = Path(__file__).parents[3] / "shared/data/av_mnist"
    archives = sorted(here.glob("*.zip"))
    if not archives:
        pytest.skip(f"no archive in {here}")
    assert module._not_speech(archives[0]) == ""
    for name, md5 in module.FILES.items():
        assert module._not_mnist(md5, here / f"{name}.gz") == ""
