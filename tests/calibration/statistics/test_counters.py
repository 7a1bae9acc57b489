"""The gate between counting and checkpoints: whole batches only, and nobody waits for ever."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from int8calib.calibration.statistics.checkpoint import CollectionState
from int8calib.calibration.statistics.counters import Counters, ReadersWriterLock
from int8calib.calibration.statistics.histogram import Range


def test_alone_never_sees_half_a_batch() -> None:
    gate = ReadersWriterLock()
    lock = threading.Lock()
    begun, ended, seen = [], [], []

    def work(number: int) -> None:
        for step in range(40):
            with gate.working():
                with lock:
                    begun.append((number, step))
                time.sleep(0.0005)
                with lock:
                    ended.append((number, step))
            if step % 5 == number:
                with gate.alone():
                    seen.append((len(begun), len(ended)))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert len(ended) == 160
    assert len(seen) == 32
    assert all(a == b for a, b in seen)
    assert not gate.broken


def test_an_error_breaks_the_gate_but_lets_others_end() -> None:
    gate = ReadersWriterLock()
    with pytest.raises(KeyError), gate.working():
        raise KeyError
    assert gate.broken
    with gate.alone():
        pass
    with gate.working():
        pass


def test_images_go_to_their_half_and_other_tops_with_the_first() -> None:
    counters = Counters({"x": Range(-1, 2, 4), "y": Range(0, 1, 4)}, check=True)
    x = np.array([[0.5, 2], [1, -1], [1, 0]], np.float32)
    counters.add((2, 3, 4), "x", x)
    counters.add((3, 2, 2), "y", np.array([[1, 1, 1, 1]], np.float32))
    found = counters.add_to(CollectionState())
    assert found.histograms["x"].nonzero == 5
    assert found.histograms["x"].zeros == 1
    assert found.halves["x"].nonzero == 3
    assert found.halves["x"].negative.sum() == 0
    assert (found.halves["y"].nonzero, found.histograms["y"].nonzero) == (0, 4)
    twice = counters.add_to(found)
    assert twice.histograms["x"].nonzero == 10
    assert found.histograms["x"].nonzero == 5
