"""The lock between counting and checkpoints: whole batches only, and nobody waits for ever."""

from __future__ import annotations

import threading
import time

import pytest

from int8calib.calibration.statistics.checkpoint import ReadersWriterLock


def test_who_holds_the_lock_alone_never_sees_half_a_batch() -> None:
    holding = ReadersWriterLock()
    lock = threading.Lock()
    begun, ended, seen = [], [], []

    def work(number: int) -> None:
        for step in range(40):
            with holding.shared():
                with lock:
                    begun.append((number, step))
                time.sleep(0.0005)
                with lock:
                    ended.append((number, step))
            if step % 5 == number:
                with holding.exclusive():
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
    assert not holding.broken


def test_an_error_breaks_the_lock_but_lets_others_end() -> None:
    holding = ReadersWriterLock()
    with pytest.raises(KeyError), holding.shared():
        raise KeyError
    assert holding.broken
    with holding.exclusive():
        pass
    with holding.shared():
        pass
