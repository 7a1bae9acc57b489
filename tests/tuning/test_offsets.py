"""A network that is tuned for blobs with an offset, in ncnn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from int8calib.calibration.options import Options
from int8calib.ncnn.convert.deploy import float_model, ncnn_pair
from int8calib.simulation.build import simulate
from int8calib.tuning.results import TuneOptions
from int8calib.tuning.search import tune
from tests.ncnn.runtime import run_blobs
from tests.tuning_nets import batches, chain, score_blob


def test_ncnn_runs_what_was_tuned_and_loses_less(tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    net, images = chain(tmp_path), batches(24)
    given = [next(iter(each.items())) for each in batches(9, seed=31)]
    name = float_model(net).layers[-2].tops[0]
    losses = []
    for offsets in (False, True):
        changes = TuneOptions(change_model=True, more_work=0, offsets=offsets)
        found = tune(net, lambda: images, Options(workers=1), changes)
        assert found.chosen == "tuned"
        assert any(rows.unsigned for rows in found.table.layers) == offsets
        pair = ncnn_pair(found.net, found.table, rounded=found.rounded)
        simulated = simulate(found.net, found.table)
        loss = 0.0
        for key, data in given:
            layers = pair.int8_model.layers
            (top,) = run_blobs(layers, {key: data[0]}, [name], packing=False, folder=tmp_path)
            wanted, same = (
                each.forward({key: data}, outputs=[score_blob(each)])[score_blob(each)].ravel()
                for each in (net, simulated)
            )
            assert np.abs(top.ravel() - same).max() < 0.05 * np.abs(same).max()
            error = (top.ravel() - top.mean()) - (wanted - wanted.mean())
            loss += float(np.square(error).sum())
        losses.append(loss)
    assert losses[1] < 0.7 * losses[0]
