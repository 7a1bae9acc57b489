"""Batches: the same values in the same order whatever the threads, with gaps closed and told."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from int8calib.errors import ImageError, OptionError
from int8calib.images import Preprocess, batches, batches_of_inputs, open_source
from int8calib.images.source import ImageSource

RNG = np.random.default_rng(21)
PREPARE = Preprocess((3, 13, 17), "rgb", mean=(104, 117, 123), norm=0.017)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eleven images of random pixels, of sizes that differ."""
    for number in range(11):
        image = RNG.integers(0, 256, (19 + number, 41 - number, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f"{number:02}.png"), image)
    return tmp_path


def expected(folder: Path, numbers: list[int]) -> Any:
    """(x - mean) * norm of the resized images, channels turned round."""
    stack = []
    for number in numbers:
        image = cv2.resize(cv2.imread(str(folder / f"{number:02}.png")), (17, 13))
        stack.append(image[:, :, ::-1].transpose(2, 0, 1))
    mean = np.array([104, 117, 123], np.float32).reshape(3, 1, 1)
    return (np.array(stack).astype(np.float32) - mean) * np.float32(0.017)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 11, 23])
def test_order_and_values(folder: Path, threads: int, batch_size: int) -> None:
    source = open_source(folder)
    out = list(batches(source, PREPARE, batch_size, threads=threads))
    assert [len(batch) for batch in out] == [
        min(batch_size, 11 - begin) for begin in range(0, 11, batch_size)
    ]
    assert [name for batch in out for name in batch.names] == list(source.names)
    assert [index for batch in out for index in batch.indices] == list(range(11))
    assert [batch.next_start for batch in out] == [
        min(begin + batch_size, 11) for begin in range(0, 11, batch_size)
    ]
    for batch in out:
        assert batch.data.dtype == np.float32
        assert batch.data.flags.c_contiguous
        assert list(batch.blobs) == ["data"]
        np.testing.assert_array_equal(batch.data, expected(folder, list(batch.indices)))


def test_start_continues_where_a_run_stopped(folder: Path) -> None:
    source = open_source(folder)
    first = next(batches(source, PREPARE, 3))
    rest = list(batches(source, PREPARE, 3, start=first.next_start))
    assert [index for batch in rest for index in batch.indices] == list(range(3, 11))
    np.testing.assert_array_equal(rest[0].data, expected(folder, [3, 4, 5]))
    assert list(batches(source, PREPARE, start=11)) == []


@pytest.mark.parametrize("batch_size", [1, 2, 3, 11])
def test_unreadable_images_are_told_and_left_out(folder: Path, batch_size: int) -> None:
    (folder / "02.png").write_bytes(b"damaged")
    (folder / "03.png").write_bytes(b"")
    (folder / "10.png").unlink()
    (folder / "10.png").symlink_to(folder / "nowhere")
    told: list[str] = []
    out = list(batches(open_source(folder), PREPARE, batch_size, report=told.append))
    good = [0, 1, 4, 5, 6, 7, 8, 9]
    assert [index for batch in out for index in batch.indices] == good
    assert all(len(batch) for batch in out)
    data = np.concatenate([batch.data for batch in out])
    np.testing.assert_array_equal(data, expected(folder, good))
    assert [Path(line.split(": ")[1]).name for line in told] == ["02.png", "03.png", "10.png"]
    assert all(line.startswith("skipped: ") for line in told)


def test_without_a_report_a_skipped_image_is_a_warning(folder: Path) -> None:
    (folder / "04.png").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=r"skipped: .*04\.png: not an image") as caught:
        assert sum(len(batch) for batch in batches(open_source(folder), PREPARE, 4)) == 10
    assert len(caught) == 1


def test_no_image_left_is_an_error(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(b"damaged")
    told: list[str] = []
    with pytest.raises(
        ImageError, match=r"not one of the 11 images could be used; the first: .*00\.png: not an"
    ):
        list(batches(open_source(folder), PREPARE, 4, report=told.append))
    assert len(told) == 11
    # A resumed run had images before.
    assert list(batches(open_source(folder), PREPARE, start=6, report=told.append)) == []
    assert len(told) == 16


def test_an_image_that_cannot_be_resized_is_named(folder: Path) -> None:
    cv2.imwrite(str(folder / "05.png"), np.zeros((1, 20011, 3), np.uint8))
    told: list[str] = []
    prepare = Preprocess((3, 227, 227), resize="crop")
    out = list(batches(open_source(folder), prepare, report=told.append))
    assert len(out) == 10
    assert len(told) == 1
    assert "05.png" in told[0]
    assert "too narrow" in told[0]


def test_gray_is_decoded_as_gray(folder: Path) -> None:
    image = cv2.imread(str(folder / "00.png"))
    cv2.imwrite(str(folder / "00.jpg"), image)
    prepare = Preprocess((1, *image.shape[:2]))
    batch = next(batches(open_source(folder / "00.jpg"), prepare, blob="image"))
    gray = cv2.imread(str(folder / "00.jpg"), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_array_equal(batch.blobs["image"][0, 0], gray)


def test_reduced_jpeg_is_asked_for_and_close(tmp_path: Path) -> None:
    coarse = RNG.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (512, 400), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(tmp_path / "a.jpg"), image)
    source = open_source(tmp_path)
    full = next(batches(source, Preprocess((3, 47, 61))))
    reduced = next(batches(source, Preprocess((3, 47, 61), reduced_jpeg=True)))
    half = cv2.imread(str(tmp_path / "a.jpg"), cv2.IMREAD_REDUCED_COLOR_4)
    np.testing.assert_array_equal(reduced.data[0], cv2.resize(half, (61, 47)).transpose(2, 0, 1))
    assert 0 < np.abs(reduced.data - full.data).max() < 12


def test_arrays_pass_unchanged(tmp_path: Path) -> None:
    array = RNG.normal(size=(7, 3, 13, 17))
    np.save(tmp_path / "x.npy", array)
    for prepare in (PREPARE, (3, 13, 17), [3, 13, 17]):
        out = list(batches(open_source(tmp_path / "x.npy"), prepare, 3))
        data = np.concatenate([batch.data for batch in out])
        np.testing.assert_array_equal(data, array.astype(np.float32))
    wrong = batches(open_source(tmp_path / "x.npy"), (3, 17, 13))
    with pytest.raises(ImageError, match=r"x\.npy\[0\]: has the shape \(3, 13, 17\), input data"):
        next(wrong)


def test_several_inputs_stay_together(folder: Path) -> None:
    (folder / "06.png").write_bytes(b"damaged")
    info = np.arange(33, dtype=np.float32).reshape(11, 3)
    inputs: dict[str, Any] = {
        "data": (open_source(folder), PREPARE),
        "im_info": (open_source(info), (3,)),
    }
    told: list[str] = []
    out = list(batches_of_inputs(inputs, 4, report=told.append))
    assert [list(batch.blobs) for batch in out] == [["data", "im_info"]] * 3
    assert len(told) == 1
    for batch in out:
        numbers = list(batch.indices)
        np.testing.assert_array_equal(batch.blobs["data"], expected(folder, numbers))
        np.testing.assert_array_equal(batch.blobs["im_info"], info[numbers])


def test_what_does_not_fit_together(folder: Path) -> None:
    source = open_source(folder)
    short = open_source(np.zeros((10, 3)))
    with pytest.raises(ImageError, match="data has 11 items, input im_info has 10"):
        batches_of_inputs({"data": (source, PREPARE), "im_info": (short, (3,))})
    with pytest.raises(ImageError, match=r"input im_info of shape \(3,\) is given images"):
        batches(source, (3,), blob="im_info")
    for options in ({"batch_size": 0}, {"threads": 0}, {"start": 12}, {"start": -1}):
        with pytest.raises(OptionError, match=r"must be positive|cannot start at"):
            batches(source, PREPARE, **options)
    with pytest.raises(OptionError, match="no input blob"):
        batches_of_inputs({})


def test_missing_opencv_ends_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(folder)
    monkeypatch.setitem(sys.modules, "cv2", None)
    told: list[str] = []
    with pytest.raises(ImageError, match="opencv-python-headless"):
        list(batches(source, PREPARE, report=told.append))
    assert told == []


class Counting(ImageSource):
    """Tells which items were loaded, and by how many threads at once."""

    preprocessed = True

    def __init__(self, length: int, together: int) -> None:
        super().__init__([str(number) for number in range(length)])
        self.loaded: list[int] = []
        self.barrier = threading.Barrier(together)

    def load(self, index: int, **_: Any) -> Any:
        self.barrier.wait(timeout=20)
        self.loaded.append(index)
        return np.full((2,), index, np.float32)


@pytest.mark.parametrize(
    ("batch_size", "threads", "bound"), [(1, 1, 3), (2, 2, 6), (1, 4, 5), (5, 2, 15)]
)
def test_decodes_ahead_but_not_without_bound(batch_size: int, threads: int, bound: int) -> None:
    source = Counting(100, together=1)
    stream = batches(source, (2,), batch_size, threads=threads)
    assert source.loaded == []
    first = next(stream)
    assert first.indices == tuple(range(batch_size))
    # Everything set going while the receiver is busy ends by itself, and nothing follows it.
    names = {thread.name for thread in threading.enumerate()}
    assert any(name.startswith("int8calib-images") for name in names)
    stream.close()  # type: ignore[attr-defined]
    assert len(source.loaded) <= bound
    names = {thread.name for thread in threading.enumerate()}
    assert not any(name.startswith("int8calib-images") for name in names)


def test_a_receiver_that_stops_does_not_wait_for_the_queue() -> None:
    gate = threading.Event()

    class Slow(Counting):
        def load(self, index: int, **_: Any) -> Any:
            if index >= 5:
                gate.wait(timeout=20)
            return super().load(index)

    source = Slow(100, together=1)
    stream = batches(source, (2,), 5, threads=1)
    next(stream)
    timer = threading.Timer(0.5, gate.set)
    timer.start()
    stream.close()  # type: ignore[attr-defined]
    timer.join()
    # Only what was being loaded at that moment still ends.
    assert len(source.loaded) <= 6


def test_all_threads_work_at_once() -> None:
    # The barrier opens only when three items are being loaded at the same time.
    source = Counting(9, together=3)
    assert sum(len(batch) for batch in batches(source, (2,), 1, threads=3)) == 9


def test_an_unforeseen_error_in_a_thread_reaches_the_receiver() -> None:
    class Broken(Counting):
        def load(self, index: int, **_: Any) -> Any:
            if index == 4:
                raise MemoryError("no room")
            return super().load(index)

    stream = batches(Broken(9, together=1), (2,), 2)
    assert [next(stream).indices, next(stream).indices] == [(0, 1), (2, 3)]
    with pytest.raises(MemoryError, match="no room"):
        next(stream)


def test_real_images(shared: Path) -> None:
    folder = shared / "images" / "imagenet_300"
    source = open_source(folder, limit=12)
    prepare = Preprocess((3, 227, 227), mean=(104, 117, 123))
    for batch in batches(source, prepare, 5):
        for name, blob in zip(batch.names, batch.data, strict=True):
            image = cv2.imread(str(folder / name))
            oracle = cv2.dnn.blobFromImage(image, 1.0, (227, 227), (104, 117, 123))
            np.testing.assert_array_equal(blob, oracle[0])
