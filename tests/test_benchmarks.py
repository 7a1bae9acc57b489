"""The benchmarks on the built-in network in tiny sizes: structure, sums and converters, no times."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks import busy, growth, guard, ratios, report, start, timing  # noqa: E402
from benchmarks.__main__ import PARTS, main, run_parts  # noqa: E402
from benchmarks.networks import Material, Network, gather  # noqa: E402
from benchmarks.probes import STAGES, Clock  # noqa: E402
from benchmarks.settings import QUICK, Settings  # noqa: E402
from int8calib.cli.main import run_command  # noqa: E402

pytestmark = pytest.mark.long

TINY = Settings(
    images=3,
    rounds=1,
    forwards=2,
    seconds=0.0,
    many_images=5,
    growth_images=(2, 3),
    growth_sizes=(64, 96),
    size_images=2,
    growth_rounds=1,
    slow_images=2,
    slow_blobs=1,
    starts=1,
)


def say(text: str) -> None:
    """Progress is for people."""


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return gather(tmp_path_factory.mktemp("benchmarks"), ["demo"], say)


@pytest.fixture(scope="module")
def results(material: Material) -> dict:
    """One tiny run of what takes OpenCV forwards, processes and probes."""
    with pytest.MonkeyPatch.context() as patch:
        # Whole calibrations are processes elsewhere: beside ncnn2table, and under probes.
        patch.setattr(ratios, "run_process", lambda command: here(command[3:]))
        return run_parts(["ratios", "stages", "memory", "reference"], material, TINY, say, {})


def here(words: Sequence[str]) -> timing.Cost:
    """A command of int8calib in this process, where all is imported."""
    return timing.timed(lambda: run_command(words), 1)


def test_without_shared_files_the_demo_network_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INT8CALIB_SHARED", str(tmp_path / "nowhere"))
    said: list[str] = []
    found = gather(tmp_path, ["squeezenet_v1.1"], said.append)
    assert [network.name for network in found.networks] == ["demo"]
    assert "squeezenet_v1.1" in said[0]
    count = 2 * len(found.images) + 1
    lines = found.image_list(count).read_text().splitlines()
    assert len(lines) == count
    assert lines[0] == lines[len(found.images)] == lines[-1]
    assert all(cv2.imread(line) is not None for line in set(lines))


def test_ratios_are_of_each_contender_and_its_baseline(results: dict) -> None:
    found = results["ratios"]["demo"]
    assert found["images"] == TINY.images
    for contender in ("process", "engine"):
        summary = found[contender]
        quotient = summary["seconds"]["median"] / summary["baseline_seconds"]["median"]
        assert summary["ratio"]["median"] == pytest.approx(quotient)
        assert summary["cpu_ratio"]["median"] > 0


def test_shares_of_all_stages_make_a_whole(results: dict) -> None:
    found = results["stages"]["demo"]
    shares = found["shares"]
    assert set(shares) == {*STAGES, "rest"}
    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares.values()) >= 0
    busy = ("start", "load", "decode", "forward", "statistics", "threshold", "write")
    assert all(shares[stage] > 0 for stage in busy)


def test_memory_is_that_of_the_child(results: dict) -> None:
    found = results["memory"]
    peaks = [found[run]["peak_bytes"] for run in ("few", "many")]
    if None in peaks:
        pytest.skip("this system does not tell a process's peak memory")
    assert all(30e6 < peak < 1e9 for peak in peaks)
    assert found["growth"] == pytest.approx(peaks[1] / peaks[0] - 1)
    assert (found["few"]["images"], found["many"]["images"]) == (TINY.images, TINY.many_images)


def test_rendition_extrapolates_from_what_it_ran(results: dict) -> None:
    found = results["reference"]
    assert (found["images_run"], found["blobs_searched"]) == (TINY.slow_images, TINY.slow_blobs)
    assert found["blobs"] >= found["blobs_searched"]
    assert found["ratio"] > 0


def test_start_and_growth_have_a_time_for_every_case(
    material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches: list[tuple[str, list[str]]] = []
    calibrations: list[list[str]] = []
    ran: set[tuple[str, ...]] = set()

    def run(command: Sequence[str], env: dict[str, str] | None = None) -> timing.Cost:
        """Of calibrations, one with each set of options runs, here where all is imported."""
        before, words = list(command[:3]), list(command[3:])
        if before != timing.python("-c", timing.COMMAND) or words[0] != "calibrate":
            return timing.run_process(command, env)
        calibrations.append(words)
        options = tuple(word for word in words if word.startswith("--"))
        if env is not None:
            folder = Path(env["NUMBA_CACHE_DIR"])
            caches.append((str(folder), [path.name for path in folder.iterdir()]))
            (folder / "kernel").touch()
        if options in ran:
            return timing.Cost(0.3 + len(calibrations), 0.2)
        ran.add(options)
        return here(words)

    def given(option: str) -> list[str]:
        return [words[words.index(option) + 1] for words in calibrations if option in words]

    for module in (start, growth):
        monkeypatch.setattr(module, "run_process", run)
    found = start.measure(material, TINY, say)
    (first, in_first), (later, in_later) = caches
    assert (first, in_first, in_later) == (later, [], ["kernel"])
    (listing,) = set(given("--images"))
    assert Path(listing).read_text().count("\n") == start.FEW_IMAGES
    before = len(calibrations)
    for key in ("python", "import", "help", "first_run", "later_run"):
        assert found[key]["rounds"] == 1
        assert found[key]["median"] > 0
    extra = found["first_run"]["median"] - found["later_run"]["median"]
    assert found["first_run_extra"]["median"] == pytest.approx(extra)
    grown = growth.measure(material, TINY, say)
    assert set(grown["images"]) == {"1", "2"}
    for line in grown["images"].values():
        assert set(line["seconds"]) == {"2", "3"}
    macs = grown["sizes"]["multiply_adds"]
    assert set(grown["sizes"]["seconds"]) == set(macs) == {"64", "96"}
    assert 2 < macs["96"] / macs["64"] < 2.5
    assert given("--workers")[before:] == ["1", "2", "1", "2", "1", "1"]
    counts = [Path(path).read_text().count("\n") for path in given("--images")[before:]]
    assert counts == [2, 2, 3, 3, 2, 2]
    assert given("--input-shape") == ["data=1,3,64,64", "data=1,3,96,96"]
    page = report.page({**_stub_results(), "start": found, "growth": grown})
    assert "## Start" in page
    assert "## Growth" in page


def test_forward_is_measured_beside_busy_processes(
    material: Material, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert busy.BUSY == (0, 1, 2)
    monkeypatch.setattr(busy, "BUSY", (1,))
    in_a_process = busy._contender

    def contender(name: str, network: Network, settings: Settings) -> timing.Contender:
        """One as it is, the others without a process for each of their runs."""
        if name == busy.BLAS:
            return in_a_process(name, network, settings)
        words = [name, str(network.proto), str(network.model), "0"]
        return lambda: timing.Cost(*json.loads(busy.main(words) or capsys.readouterr().out))

    monkeypatch.setattr(busy, "_contender", contender)
    found = busy.measure(material, TINY, say)
    assert set(found["demo"]) == {"1"}
    for ways in found["demo"].values():
        assert list(ways) == [busy.DEFAULT, busy.BLAS]
        assert all(way["ratio"]["median"] > 0 for way in ways.values())
    page = report.page({**_stub_results(), "busy": found})
    assert page.count("\n| demo | 1 |") == 1


def test_busy_processes_are_busy_until_the_block_ends() -> None:
    def seconds() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = after = seconds()
    # A machine that others use gives them little at first; idle ones would never come so far.
    for pause in (0.2, 0.4, 0.8, 1.6):
        if after - before <= 0.2:
            before = seconds()
            with busy.busy_processes(2):
                time.sleep(pause)
            after = seconds()
    assert after - before > 0.2
    time.sleep(0.2)
    assert seconds() == after


def test_line_is_that_of_numpy() -> None:
    x, y = [50, 100, 200, 300], [1.4, 2.1, 3.9, 5.2]
    found = growth.straight_line(x, y)
    slope, offset = np.polyfit(x, y, 1)
    assert found["slope"] == pytest.approx(slope)
    assert found["start"] == pytest.approx(offset)
    assert found["r2"] == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)


def test_interleaving_cancels_a_steady_drift() -> None:
    now = 0

    def contender(work: float) -> timing.Contender:
        def run() -> timing.Cost:
            nonlocal now
            now += 1
            slowness = 1 + 0.1 * now
            return timing.Cost(work * slowness, 3 * work * slowness)

        return run

    found = timing.interleave(contender(1), {"two": contender(2), "five": contender(5)}, 3)
    for name, work in (("two", 2), ("five", 5)):
        summary = found[name].summary()
        assert summary["ratio"] == pytest.approx(
            {"median": work, "low": work, "high": work, "rounds": 3}
        )
        assert summary["seconds"]["high"] > summary["seconds"]["low"]


def test_a_failing_process_says_why() -> None:
    with pytest.raises(RuntimeError, match="no such option"):
        timing.run_process(timing.python("-c", "import sys; sys.exit('no such option')"))


def test_inner_stages_do_not_count_twice() -> None:
    clock = Clock()

    def spin(rounds: int) -> None:
        for _ in range(rounds):
            np.linalg.norm(np.ones(4099))

    inner = clock.timing("inner", lambda: spin(3000))

    def work() -> None:
        inner()
        inner()

    whole = Clock()
    whole.timing("all", clock.timing("outer", work))()
    assert clock.seconds["outer"] < 0.2 * clock.seconds["inner"]
    assert sum(clock.seconds.values()) == pytest.approx(whole.seconds["all"], rel=0.05)


def _stub_results() -> dict:
    """Results without any measurement."""
    packages = {"numpy": "2", "ncnn": None}
    machine = {"processor": "P", "cores": 2, "python": "3", "packages": packages}
    return {"machine": machine, "ratios": {}, "stages": {}}


def test_guard_tells_what_is_worse(results: dict) -> None:
    assert guard.regressions(results, results) == []
    assert guard.compared(results, results) == ["demo"]
    worse = json.loads(json.dumps(results))
    engine = worse["ratios"]["demo"]["engine"]
    engine["ratio"]["median"] *= 1.5
    assert guard.regressions(results, worse) == [], "the clock alone proves nothing"
    engine["cpu_ratio"]["median"] *= 1.4
    worse["stages"]["demo"]["shares"]["write"] += 0.2
    engine_line, write_line = guard.regressions(results, worse)
    assert "demo: engine" in engine_line
    assert "1.40 times" in engine_line
    assert "demo: write" in write_line
    worse["ratios"]["demo"]["images"] += 1
    assert guard.compared(results, worse) == []


def test_page_has_a_row_for_every_network_and_stage(results: dict) -> None:
    page = report.page(results)
    assert page.count("\n| demo |") >= 3
    assert all(f"{stage} %" in page for stage in STAGES)
    median = results["ratios"]["demo"]["engine"]["ratio"]["median"]
    assert f"{median:.2f} (" in report.main_table(results)


def test_docs_take_the_table_between_its_markers(tmp_path: Path, results: dict) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{report.BEGIN}\nold\n{report.END}\n\nafter\n")
    report.write_docs(page, results)
    text = page.read_text()
    assert report.docs_table(text) == report.docs_text(results)
    assert text.startswith("before\n")
    assert text.endswith("\n\nafter\n")
    page.write_text("no markers\n")
    with pytest.raises(ValueError, match="page"):
        report.write_docs(page, results)


def test_command_keeps_results_of_other_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, results: dict
) -> None:
    asked: list[Settings] = []

    def stages(material: Material, settings: Settings, say: object) -> dict:
        asked.append(settings)
        (network,) = material.networks
        return {network.name: results["stages"]["demo"] | {"images": settings.images}}

    monkeypatch.setitem(PARTS, "reference", lambda *given: results["reference"])
    monkeypatch.setitem(PARTS, "stages", stages)
    output, work = tmp_path / "out", tmp_path / "work"
    common = ["--quick", "--networks", "demo", "--output", str(output), "--work", str(work)]
    assert main([*common, "--parts", "reference"]) == 0
    first = json.loads((output / "results.json").read_text())
    assert first["reference"] == results["reference"]
    assert "stages" not in first
    assert main([*common, "--parts", "stages", "--images", "2"]) == 0
    both = json.loads((output / "results.json").read_text())
    assert both["reference"] == first["reference"]
    assert both["stages"]["demo"]["images"] == 2
    assert asked == [replace(QUICK, images=2)]
    assert (output / "results.md").read_text() in capsys.readouterr().out
