"""Options that many commands take: the model, the machine, checkpoints, messages.

Each group of options is a function that declares it and a frozen dataclass that holds what was
given; a command reads its arguments into these, and nothing behind it sees the parser.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

from int8calib.errors import OptionError
from int8calib.limits import MAX_WORKERS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from int8calib.arrays import Shape
    from int8calib.caffe.engine.run import Net
    from int8calib.calibration.statistics.checkpoint import Checkpoint
    from int8calib.device import Device

Options = TypeVar("Options")


def read_options(kind: type[Options], args: argparse.Namespace) -> Options:
    """Read parsed arguments into a dataclass.

    Parameters
    ----------
    kind
        A dataclass whose fields have the names of arguments.
    args
        The parser's result. A field with a default may be missing in it.

    Returns
    -------
    kind
        The dataclass, lists as tuples.
    """
    values: dict[str, Any] = {}
    for field in fields(kind):  # type: ignore[arg-type]
        if hasattr(args, field.name) or field.default is MISSING:
            value = getattr(args, field.name)
            values[field.name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def whole(least: int = 0) -> Callable[[str], int]:
    """Return a type of arguments: whole numbers of at least `least`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value < 1 << 63:
            raise argparse.ArgumentTypeError(f"{text}: expected a whole number, {least} or more")
        return value

    return parse


def finite(least: float | None = None) -> Callable[[str], float]:
    """Return a type of arguments: finite numbers, of at least `least` where it is given."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or (least is not None and value < least):
            rest = "" if least is None else f", {least:g} or more"
            raise argparse.ArgumentTypeError(f"{text}: expected a finite number{rest}")
        return value

    return parse


@dataclass(frozen=True)
class MessageOptions:
    """How much a command says."""

    quiet: bool = False
    verbose: bool = False
    debug: bool = False


def add_message_arguments(parser: argparse.ArgumentParser, *, inner: bool = False) -> None:
    """Declare the options of `MessageOptions`.

    `inner`: for a command inside a command, which must not undo what was said before its name.
    """
    group = parser.add_argument_group("messages")
    default: Any = argparse.SUPPRESS if inner else False
    for name, text in (
        ("--quiet", "print nothing but errors"),
        ("--verbose", "print more of what is done"),
        ("--debug", "show a traceback with an error"),
    ):
        group.add_argument(name, action="store_true", default=default, help=text)


@dataclass(frozen=True)
class ModelOptions:
    """The files of a Caffe model, shapes of its inputs as `NAME=N,C,H,W`, fields to ignore."""

    proto: str
    model: str
    input_shape: tuple[str, ...] = ()
    ignore_field: tuple[str, ...] = ()

    def load(self, device: Device | None = None) -> Net:
        """Return the network, on a device where one is given.

        Raises `ModelError`, and `OptionError` for a shape.
        """
        import int8calib

        return int8calib.load_caffe(
            self.proto,
            self.model,
            input_shapes=parse_input_shapes(self.input_shape),
            ignore_fields=self.ignore_field,
            device=device,
        )


def add_model_arguments(parser: argparse.ArgumentParser, *, model_required: bool = True) -> None:
    """Declare the options of `ModelOptions`."""
    group = parser.add_argument_group("model")
    group.add_argument("--proto", required=True, metavar="FILE", help="the deploy prototxt")
    what = "the caffemodel with the weights" if model_required else "the caffemodel, or none"
    group.add_argument("--model", required=model_required, metavar="FILE", help=what)
    add_input_shape_argument(group)
    add_ignore_field_argument(group)


def add_ignore_field_argument(group: Any) -> None:
    """Declare `--ignore-field`."""
    group.add_argument(
        "--ignore-field",
        action="append",
        default=[],
        metavar="FIELD",
        help="go on without an option of the prototxt that is not known, such as "
        "convolution_param.foo; can be given several times",
    )


def add_input_shape_argument(group: Any) -> None:
    """Declare `--input-shape`."""
    group.add_argument(
        "--input-shape",
        action="append",
        default=[],
        metavar="NAME=N,C,H,W",
        help="shape of an input, where the prototxt does not say it or another is wanted",
    )


def parse_input_shapes(texts: tuple[str, ...] | list[str]) -> Mapping[str, Shape]:
    """Read input shapes.

    Parameters
    ----------
    texts
        The values of `--input-shape`, such as ``data=1,3,224,224``.

    Returns
    -------
    mapping of str to Shape
        Each input's shape by name.

    Raises
    ------
    OptionError
        For a text of another form, or a size below 1.
    """
    shapes: dict[str, Shape] = {}
    for text in texts:
        name, equals, dims = text.rpartition("=")
        try:
            shape = tuple(int(dim) for dim in dims.replace("x", ",").split(","))
        except ValueError:
            shape = ()
        if not equals or not shape or min(shape) < 1:
            raise OptionError(
                f"--input-shape {text}: expected NAME=N,C,H,W, such as data=1,3,224,224"
            )
        if shapes.setdefault(name, shape) != shape:
            raise OptionError(f"--input-shape {text}: input {name!r} has another shape already")
    return shapes


@dataclass(frozen=True)
class RunOptions:
    """How images run: in parallel, in one pass or two, and memory as a text such as `2G`."""

    workers: int | None = None
    exact: bool | None = None
    cache: str | None = None

    @property
    def worker_count(self) -> int:
        """`--workers`, or the cores this process may use; raises `OptionError`."""
        if self.workers is None:
            from int8calib.workers import usable_cores

            return usable_cores()
        if not 1 <= self.workers <= MAX_WORKERS:
            raise OptionError(f"--workers {self.workers}: expected 1 to {MAX_WORKERS}")
        return self.workers

    @property
    def cache_bytes(self) -> int | None:
        """`--cache` in bytes, or None: what the free memory allows when images run."""
        if self.cache is None:
            return None
        units = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
        text = self.cache.upper().removesuffix("B").removesuffix("I")
        number, unit = (text[:-1], text[-1]) if text[-1:] in "KMGT" and text else (text, "")
        try:
            size = float(number) * units[unit]
        except ValueError:
            size = -1.0
        if not 0 <= size < 1e18:
            raise OptionError(f"--cache {self.cache}: expected a size such as 0, 500M or 2G")
        return int(size)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `RunOptions`, for a command that calibrates."""
    group = add_workers_argument(parser)
    group.add_argument(
        "--exact",
        action=argparse.BooleanOptionalAction,
        help="count histograms in two passes, in the very bins of ncnn2table and the reference "
        "tool; one pass, whose thresholds are mostly within 1 of 2048 bins of these, takes less "
        "time and memory (default: --exact with --method kl-tool and kl-tool-v1, and with "
        "--method kl --input-method same; else --no-exact)",
    )
    group.add_argument(
        "--cache",
        metavar="SIZE",
        help="memory for activations with --exact, so that images run once instead of twice, such "
        "as 500M or 2G (default: a quarter of the free memory, at most 2G); the table does not "
        "depend on it",
    )


def add_workers_argument(parser: argparse.ArgumentParser) -> Any:
    """Declare `--workers`, for a command that only runs images, and return the group."""
    group = parser.add_argument_group("machine")
    group.add_argument(
        "--workers", type=int, metavar="N", help="images in parallel (default: one for each core)"
    )
    return group


@dataclass(frozen=True)
class ClusterOptions:
    """Where images run instead of on this machine: a scheduler's address, or `local:N`."""

    cluster: str | None = None
    send_images: bool = False

    def open(self, *, checkpoint: str | None = None) -> AbstractContextManager[Any]:
        """Return a block with the client of the cluster, None where there is none.

        Raises `OptionError` for a cluster that cannot be used, and beside a checkpoint.
        """
        if self.cluster is None:
            return nullcontext()
        if checkpoint is not None:
            raise OptionError("--checkpoint: a run on a cluster has none; leave one of both out")
        from int8calib.cluster.connect import open_cluster

        return open_cluster(self.cluster)


def add_cluster_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `ClusterOptions`."""
    group = parser.add_argument_group("cluster")
    group.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="run the images on a Dask cluster (needs the extra dask): a scheduler's address such "
        "as tcp://10.0.0.1:8786, or local:N for N processes on this machine; the result is the "
        "same bit for bit",
    )
    group.add_argument(
        "--send-images",
        action="store_true",
        help="with --cluster: send the image files to the workers, which otherwise read them under "
        "the same path as this machine",
    )


@dataclass(frozen=True)
class CheckpointOptions:
    """Where a long run keeps what it has counted, and how often it writes it, in seconds."""

    checkpoint: str | None = None
    checkpoint_every: float = 30.0

    def open(self, fingerprint: Mapping[str, Any]) -> Checkpoint | None:
        """Return the checkpoint for a run of this `fingerprint`, None where none is wanted."""
        from int8calib.calibration.statistics.checkpoint import Checkpoint

        # Made in any case, so that a time that means nothing is refused in any case.
        checkpoint = Checkpoint(self.checkpoint or "", fingerprint, self.checkpoint_every)
        return None if self.checkpoint is None else checkpoint


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `CheckpointOptions`."""
    group = parser.add_argument_group("long runs")
    group.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="a file that is written now and then; if it is there, the run goes on from it and "
        "counts nothing twice. It is removed at the end",
    )
    group.add_argument(
        "--checkpoint-every",
        type=finite(0),
        default=30.0,
        metavar="S",
        help="seconds between two writes of the checkpoint (default: 30)",
    )
