"""What INT8 costs in ncnn's runtime: `python -m benchmarks.accuracy [MODEL ...]`.

Each model is calibrated and tuned by the commands of int8calib on one half of the images and run by
PyPI's ncnn (the extra `ncnn`) on the other half, each image as it is and mirrored, over several
splits. `--detectors` does it for detectors and for networks that make images. The tables go into
docs/measured.md. A stage of a split takes from seconds to minutes; what is done is kept in a folder
(`--work`), and a run that was stopped goes on from there.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import detectors
from benchmarks.__main__ import machine
from benchmarks.cases import CLASSIFIERS, OTHERS, Case, classifiers
from benchmarks.networks import ROOT
from benchmarks.report import insert
from benchmarks.stages import MSE, STAGES, Stage, float_net, interval, make, table_lines
from int8calib.ncnn.runtime import RuntimeNet

PAGE = ROOT / "docs" / "measured.md"
HEADS = ("model", "", "top-1", "loss of top-1", "agree", "time")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and write it into the docs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    known = [*CLASSIFIERS, *OTHERS]
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(known)}")
    parser.add_argument("--detectors", action="store_true", help="the other table")
    parser.add_argument("--splits", type=int, default=3, metavar="N", help="(default: 3)")
    keys = [stage.key for stage in STAGES]
    parser.add_argument(
        "--stages",
        nargs="+",
        choices=keys,
        default=keys,
        metavar="STAGE",
        help=f"of {', '.join(keys)} (default: all)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="use at most N images")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir()) / "int8calib-accuracy",
        metavar="DIR",
        help="where results are kept (default: a folder for temporary files)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print only")
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    if args.detectors:
        lines = detectors.table(args.work, args.models, args.limit, _say)
    else:
        lines = _table(args.work, args.models, args.splits, args.limit, args.stages)
    here = machine()
    packages = [f"{name} {version}" for name, version in here["packages"].items() if version]
    text = "\n".join([*lines, "", f"{here['processor']}; {', '.join(packages)}."])
    print(text)
    if not args.dry_run:
        name = "detectors" if args.detectors else "accuracy"
        insert(PAGE, f"<!-- {name}:begin -->", f"<!-- {name}:end -->", text)
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _table(
    work: Path,
    names: Sequence[str],
    splits: int,
    limit: int | None,
    wanted: Sequence[str],
) -> list[str]:
    stages = [stage for stage in STAGES if stage.key in wanted or stage == MSE]
    rows = []
    images = 0
    for case in classifiers(work, names):
        seeds = range(1, splits + 1)
        results = [_split(case, seed, work, limit, stages) for seed in seeds]
        rows += _rows(case, results, stages)
        images = len(case.images[:limit])
    said = (
        f"{splits} split{'s' * (splits > 1)} of {images} images into halves; means, in brackets "
        "the 95 % interval by drawing images again (percentile bootstrap, all results of an image "
        "as one observation). Top-1 and its loss against float in points; agreement with the float "
        "model's class in %; processor time of the command as a multiple of plain `calibrate`'s."
    )
    return [said, "", *table_lines(HEADS, rows)]


def _split(
    case: Case, seed: int, work: Path, limit: int | None, stages: Sequence[Stage]
) -> dict[str, Any]:
    """Right and equal classes of each held-out image by stage, from the file if it is there."""
    path = work / f"{case.name}-{seed}-{limit or 'all'}.json"
    done: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    images = list(case.images)
    random.Random(seed).shuffle(images)
    images = images[:limit]
    half = len(images) // 2
    used, held_out = images[:half], images[half:]
    wanted = [stage for stage in stages if stage.name not in done]
    if wanted:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            net = float_net(case, folder)
            inputs = list(case.blobs(held_out))
            expected = _classes(net, inputs)
            done["float"] = {"classes": expected}
            for stage in wanted:
                done[stage.name] = _stage(case, stage, used, inputs, folder)
                path.write_text(json.dumps(done))
                _say(
                    f"{case.name}, split {seed}, {stage.name}: {done[stage.name]['seconds']:.0f} s"
                )
    labels = np.array([case.labels[image] for image in held_out])[:, None]
    expected = np.array(done["float"]["classes"])
    found: dict[str, Any] = {}
    for name, result in done.items():
        classes = np.array(result["classes"])
        found[name] = {
            "images": [str(image) for image in held_out],
            "right": (classes == labels).mean(axis=1),
            "same": (classes == expected).mean(axis=1),
            "cpu": result.get("cpu"),
        }
    return found


def _stage(
    case: Case,
    stage: Stage,
    used: Sequence[Path],
    inputs: Sequence[tuple[str, np.ndarray]],
    folder: Path,
) -> dict[str, Any]:
    made = make(case, stage, used, folder)
    return {"classes": _classes(made.net, inputs), "seconds": made.seconds, "cpu": made.cpu}


def _classes(net: RuntimeNet, inputs: Sequence[tuple[str, np.ndarray]]) -> list[list[int]]:
    """The best class of each image, as it is and mirrored."""
    out = net.outputs[-1]
    return [
        [
            int(net.run({name: np.ascontiguousarray(each)}, [out])[out].argmax())
            for each in (blob, blob[:, :, ::-1])
        ]
        for name, blob in inputs
    ]


def _rows(
    case: Case, results: Sequence[dict[str, Any]], stages: Sequence[Stage]
) -> list[dict[str, str]]:
    """The rows of one model, the float one first."""
    rows = []
    plain = [result[MSE.name]["cpu"] for result in results]
    exact = _by_image(results, "float", "right")
    for name in ("float", *(stage.name for stage in stages)):
        right = _by_image(results, name, "right")
        row = {"model": case.name if name == "float" else "", "": name}
        row["top-1"] = f"{100 * right.mean():.1f}"
        if name != "float":
            cpu = [result[name]["cpu"] for result in results]
            ratios = [a / b for a, b in zip(cpu, plain, strict=True) if a and b]
            row["loss of top-1"] = _shown(exact - right, signed=True)
            row["agree"] = _shown(_by_image(results, name, "same"))
            row["time"] = f"{median(ratios):.1f}" if ratios else ""
        rows.append(row)
    return rows


def _by_image(results: Sequence[dict[str, Any]], name: str, key: str) -> np.ndarray:
    """Each image's mean over the splits that hold it out."""
    values: dict[str, list[float]] = {}
    for result in results:
        for image, value in zip(result[name]["images"], result[name][key], strict=True):
            values.setdefault(image, []).append(float(value))
    return np.array([np.mean(own) for _, own in sorted(values.items())])


def _shown(values: np.ndarray, *, signed: bool = False) -> str:
    """A mean with its interval, in percent."""
    mean, low, high = (100 * value for value in interval(values))
    if signed:
        return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
    return f"{mean:.1f} ({low:.1f} to {high:.1f})"


if __name__ == "__main__":
    raise SystemExit(main())
