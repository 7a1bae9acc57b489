"""Results to Markdown: the main table for docs/measured.md, and a page with all tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.probes import STAGES
from benchmarks.ratios import ENGINE_GOAL, NCNN2TABLE

BEGIN = "<!-- benchmarks:begin -->"
END = "<!-- benchmarks:end -->"
_NONE = "-"
Results = Mapping[str, Any]


def main_table(results: Results) -> str:
    """Every network's ratios, in OpenCV forwards an image; with what was measured on what."""
    machine = results["machine"]
    networks = results.get("ratios", {})
    images = {found["images"] for found in networks.values()}
    rows = [_main_row(results, name) for name in networks]
    columns = (
        *("network", "million multiply-adds", "`int8calib calibrate`", "(CPU time)"),
        *("ncnn2table", "engine alone", "(CPU time)", "goal", "two ncnn forwards", "peak memory"),
    )
    return "\n".join(
        [
            "Unit: one OpenCV dnn forward of the same network (batch 1, two threads), which runs "
            "before and after each measurement; lower is faster. Medians, with the lowest and "
            f"highest round in brackets. Whole processes over {_listed(images)} images, method "
            "kl, two workers, kernels compiled; `ncnn2table` is what that tool took when the "
            "goals were set.",
            "",
            *_table(columns, rows),
            "",
            f"{machine['processor']}, {machine['cores']} cores; Python {machine['python']}, "
            f"{', '.join(f'{n} {v}' for n, v in machine['packages'].items() if v)}.",
        ]
    )


def _main_row(results: Results, name: str) -> list[str]:
    found = results["ratios"][name]
    ncnn = found.get("ncnn")
    peak = results.get("stages", {}).get(name, {}).get("peak_bytes")
    return [
        name,
        f"{found['multiply_adds'] / 1e6:.0f}",
        _spread(found["process"]["ratio"]),
        _number(found["process"]["cpu_ratio"]["median"]),
        _number(NCNN2TABLE.get(name)),
        _spread(found["engine"]["ratio"]),
        _number(found["engine"]["cpu_ratio"]["median"]),
        _number(ENGINE_GOAL.get(name)),
        _spread(ncnn["ratio"], 2) if ncnn else _NONE,
        _megabytes(peak),
    ]


def page(results: Results) -> str:
    """All tables."""
    parts = ["# Benchmarks", "", "Made by `python -m benchmarks`; do not edit.", ""]
    sections = (
        ("Calibration and engine", "ratios", main_table),
        ("Beside ncnn2table", "ncnn2table", beside_table),
        ("Share of each stage", "stages", _stages),
        ("Memory", "memory", _memory),
        ("Start", "start", _start),
        ("On a busy machine", "busy", _busy),
        ("Growth", "growth", _growth),
        ("Python tools", "python", _python_tools),
    )
    for title, key, write in sections:
        if key in results or (key == "python" and {"reference", "onnxruntime"} & results.keys()):
            parts += [f"## {title}", "", write(results), ""]
    notes = [
        f"- {name}: {note}"
        for name, found in results.get("ratios", {}).items()
        for note in found["notes"]
    ]
    return "\n".join([*parts, *(["## Notes", "", *notes, ""] if notes else [])])


def beside_table(results: Results) -> str:
    """Time and memory beside ncnn2table, by network and images."""
    found = results["ncnn2table"]
    rows = []
    for name, sizes in found["networks"].items():
        for images, run in sizes.items():
            tool = run["tool_peak_bytes"]
            rows.append(
                [
                    *(name, images, _spread(run["ratio"]), _number(run["goal"])),
                    f"{run['seconds']['median']:.2f}",
                    f"{run['tool_seconds']['median']:.2f}",
                    _megabytes(run["peak_bytes"]),
                    _megabytes(tool) if tool else _NONE,
                ]
            )
    how = (
        "ncnn2table ran in turn with it."
        if found["measured"]
        else "ncnn2table is in no package. Its time is a stored multiple, by network, of a "
        "single-thread float forward of PyPI's ncnn, which ran in turn with it: the multiples come "
        "from a machine that had both."
    )
    columns = ("network", "images", "part of ncnn2table's time", "goal", "seconds")
    return "\n".join(
        [
            "`int8calib calibrate --method kl`, whole processes, two workers, beside ncnn2table "
            f"with method kl and two threads; lower is faster. {how}",
            "",
            *_table((*columns, "ncnn2table's seconds", "peak memory", "ncnn2table's"), rows),
        ]
    )


def _stages(results: Results) -> str:
    names = (*STAGES, "rest")
    rows = [
        [
            name,
            f"{found['cpu_seconds']:.2f}",
            *(f"{100 * found['shares'].get(stage, 0.0):.1f}" for stage in names),
            _megabytes(found["peak_bytes"]),
        ]
        for name, found in results["stages"].items()
    ]
    columns = ("network", "CPU seconds", *(f"{stage} %" for stage in names), "peak memory")
    text = (
        "Percent of the processor time of a whole run. `start`: interpreter, imports, compiled "
        "kernels; `keep`, `range` and `histogram`: those of two passes (`--exact`)."
    )
    return "\n".join([text, "", *_table(columns, rows)])


def _memory(results: Results) -> str:
    found = results["memory"]
    runs = [found[name] for name in ("few", "many", "large")]
    rows = [[run["network"], str(run["images"]), _megabytes(run["peak_bytes"])] for run in runs]
    growth = found["growth"]
    text = _NONE if growth is None else f"{100 * growth:+.1f} % of memory (goal: at most 5 %)"
    return "\n".join(
        [
            *_table(("network", "images", "peak memory"), rows),
            "",
            f"More images: {text}. Goal: at most 400 MB, ResNet-50 600 MB, whatever the images.",
        ]
    )


def _start(results: Results) -> str:
    found = results["start"]
    load = found["load"]
    seconds = (
        ("`python -c pass`", found["python"]),
        ("`import int8calib`", found["import"]),
        ("`int8calib --help` (goal: 0.15)", found["help"]),
        (f"calibrate over {found['images']} images, no compiled kernels yet", found["first_run"]),
        ("the same again", found["later_run"]),
        ("what the first run ever costs more (goal: 2)", found["first_run_extra"]),
    )
    ways = (
        ("weights as views", "views"),
        ("weights, every value read", "touched"),
        ("as a network (goal: 2)", "net"),
    )
    loads = [[text, _spread(load[way]["ratio"])] for text, way in ways]
    head = f"{load['network']} ({load['bytes'] / 1e6:.0f} MB)"
    return "\n".join(
        [
            *_table(("start", "seconds"), [[text, _spread(value)] for text, value in seconds]),
            "",
            *_table((f"loading {head}", "times of reading the file's bytes"), loads),
        ]
    )


def _busy(results: Results) -> str:
    rows = []
    for network, counts in results["busy"].items():
        for count, found in counts.items():
            opencv = next(iter(found.values()))["baseline_seconds"]
            cells = [f"{1e3 * opencv['median']:.1f}"]
            for way in found.values():
                cells += [f"{1e3 * way['seconds']['median']:.1f}", _spread(way["ratio"])]
            rows.append([network, count, *cells])
    columns = [
        *("network", "busy processes", "OpenCV, ms", "`Net.forward`, ms", "times OpenCV"),
        *("with BLAS's own threads, ms", "times OpenCV"),
    ]
    text = (
        "One image, each way in a process of its own, OpenCV on two threads. `Net.forward` runs "
        "BLAS on one thread unless `threads` says otherwise."
    )
    return "\n".join([text, "", *_table(columns, rows)])


def _growth(results: Results) -> str:
    found = results["growth"]
    lines = [f"{found['network']}, whole processes.", ""]
    counts = list(next(iter(found["images"].values()))["seconds"])
    rows = [
        [
            workers,
            *(f"{line['seconds'][count]['median']:.2f}" for count in counts),
            f"{1e3 * line['slope']:.1f}",
            f"{line['start']:.2f}",
            f"{line['r2']:.4f}",
        ]
        for workers, line in found["images"].items()
    ]
    columns = ("workers", *(f"{n} images, s" for n in counts), "ms an image", "start s", "R2")
    lines += [*_table(columns, rows), ""]
    sizes = found["sizes"]
    first = next(iter(sizes["seconds"]))
    rows = []
    for size, seconds in sizes["seconds"].items():
        macs = sizes["multiply_adds"][size]
        net = max(seconds["median"] - sizes["start"], 0.0) / sizes["images"]
        rows.append(
            [
                f"{size}x{size}",
                f"{macs / 1e6:.0f}",
                f"{macs / sizes['multiply_adds'][first]:.2f}",
                f"{seconds['median']:.2f}",
                f"{1e9 * net / macs:.4f}",
            ]
        )
    columns = ("input", "million multiply-adds", "times the first", "s", "ns a multiply-add")
    fit = (
        f"{sizes['images']} images, one worker; the last column without the line's start "
        f"({sizes['start']:.2f} s). Straight line over multiply-adds: R2 {sizes['r2']:.4f}."
    )
    return "\n".join([*lines, *_table(columns, rows), "", fit])


def _python_tools(results: Results) -> str:
    rows = []
    tool, onnx = results.get("reference"), results.get("onnxruntime")
    if tool:
        way = f"{tool['images_run']} images and {tool['blobs_searched']} of {tool['blobs']} blobs"
        name = "Python rendition of the reference tool"
        rows.append([name, tool["network"], f"{tool['ratio']:.1f}", way])
    if onnx and "skipped" not in onnx:
        way = f"{onnx['images_run']} images"
        name = f"onnxruntime {onnx['onnxruntime']}, entropy"
        rows.append([name, onnx["network"], f"{onnx['ratio']:.1f}", way])
    elif onnx:
        rows.append(["onnxruntime, entropy", _NONE, _NONE, f"not measured: {onnx['skipped']}"])
    columns = ("tool", "network", "OpenCV forwards an image", "extrapolated from")
    return "\n".join(_table(columns, rows))


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(columns)} |",
        f"|{'|'.join(['---', *['---:'] * (len(columns) - 1)])}|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _spread(value: Mapping[str, float], factor: float = 1.0) -> str:
    median, low, high = (factor * value[key] for key in ("median", "low", "high"))
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.2f}"


def _megabytes(value: int | None) -> str:
    return _NONE if value is None else f"{value / 1e6:.0f} MB"


def _listed(values: Iterable[int]) -> str:
    return " or ".join(map(str, sorted(values)))


def docs_table(text: str) -> str | None:
    """What stands between a page's markers; None without markers."""
    found = re.search(f"{re.escape(BEGIN)}\n(.*?)\n?{re.escape(END)}", text, re.DOTALL)
    return None if found is None else found.group(1)


def write_docs(path: Path, results: Results) -> None:
    """Put the tables between a page's markers; ValueError where there are none."""
    if docs_table(path.read_text(encoding="utf-8")) is None:
        raise ValueError(f"{path}: has no lines {BEGIN} and {END}")
    insert(path, BEGIN, END, docs_text(results))


def insert(path: Path, begin: str, end: str, text: str) -> None:
    """Put a text between two markers of a page; ValueError where there are none."""
    page = path.read_text(encoding="utf-8")
    before, after = page[: page.index(begin)], page[page.index(end) :]
    path.write_text(f"{before}{begin}\n{text}\n{after}", encoding="utf-8")


def docs_text(results: Results) -> str:
    """What docs/measured.md shows: the main table, and the one beside ncnn2table."""
    tables = [main_table(results)]
    if "ncnn2table" in results:
        tables.insert(0, beside_table(results))
    return "\n\n".join(tables)
