"""A Dask cluster of processes: the same bits as one machine, through faults too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from int8calib.cli.main import main
from tests.caffe.engine.test_engine import NET
from tests.generated import make_model

distributed = pytest.importorskip("distributed", reason="needs the extra dask")
pytestmark = [
    # Dask's event loop and sockets outlive a worker that is killed.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
RNG = np.random.default_rng(37)
ARRAYS = RNG.normal(0, 60, (23, 3, 37, 29)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cluster")
    make_model(folder, NET)
    np.save(folder / "all.npy", ARRAYS)
    (folder / "photos").mkdir()
    for i in range(13):
        image = RNG.integers(0, 256, (41, 31, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "photos" / f"{i}.png"), image)
    (folder / "photos" / "5.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with (
        distributed.LocalCluster(
            3, threads_per_worker=1, dashboard_address=None, silence_logs=50, memory_limit=0
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def run(folder: Path, command: str, images: str, *more: str, code: int = 0) -> None:
    words = ["--proto", str(folder / "net.prototxt"), "--model", str(folder / "net.caffemodel")]
    assert main([command, *words, "--images", str(folder / images), *more, "--quiet"]) == code


@pytest.mark.parametrize("exact", [(), ("--exact",)], ids=["one-pass", "exact"])
@pytest.mark.parametrize("images", ["all.npy", "photos"])
def test_collects_the_same_file(
    folder: Path, tmp_path: Path, client: Any, images: str, exact: tuple[str, ...]
) -> None:
    scheduler = ("--cluster", client.scheduler.address)
    run(folder, "collect", images, "--output", str(tmp_path / "one"), *exact)
    run(folder, "collect", images, "--output", str(tmp_path / "many"), *exact, *scheduler)
    run(
        folder,
        *("collect", images, "--output", str(tmp_path / "sent"), "--batch", "2", "--send-images"),
        *(*exact, *scheduler),
    )
    assert (tmp_path / "one").read_bytes() == (tmp_path / "many").read_bytes()
    assert (tmp_path / "one").read_bytes() == (tmp_path / "sent").read_bytes()
