"""The network of a command: its files, what runs it, fingerprints, and the job of a calibration."""

from __future__ import annotations

import argparse
import hashlib
import json
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from int8calib.cli.console import Console
from int8calib.cli.options import (
    ModelOptions,
    add_ignore_field_argument,
    add_input_shape_argument,
    parse_input_shapes,
    whole,
)
from int8calib.errors import OptionError
from int8calib.files import file_mode

if TYPE_CHECKING:
    from int8calib.caffe.engine.run import Net
    from int8calib.calibration.options import Options
    from int8calib.calibration.pipeline import Job
    from int8calib.cli.image_options import ImageOptions
    from int8calib.cli.loader import ImageLoader
    from int8calib.device import Device
    from int8calib.ncnn.execution.network import NcnnNet

_NCNN = ("--param", "--bin")


@dataclass(frozen=True)
class NetworkOptions:
    """A Caffe model (`--proto --model`) or an ncnn model (`--param --bin`).

    Raises
    ------
    OptionError
        For files of both kinds or of neither, and half a pair.
    """

    proto: str | None = None
    model: str | None = None
    param: str | None = None
    bin: str | None = None
    input_shape: tuple[str, ...] = ()
    ignore_field: tuple[str, ...] = ()
    optimize: bool = False
    engine: Literal["numpy", "runtime"] | None = None
    needs_weights: bool = True

    def __post_init__(self) -> None:
        """Check that the files are those of one model."""
        caffe, ncnn = (self.proto, self.model), (self.param, self.bin)
        if any(caffe) and any(ncnn):
            raise OptionError("--proto/--model and --param/--bin: give the files of one model")
        if not any(caffe) and not any(ncnn):
            raise OptionError(
                "no model is given; give --proto and --model of Caffe, or --param and --bin of ncnn"
            )
        given, names = (caffe, ("--proto", "--model")) if any(caffe) else (ncnn, _NCNN)
        for file, name, other in zip(given, names, names[::-1], strict=True):
            if file is None and (self.needs_weights or name == names[0]):
                raise OptionError(f"{other} is given without {name}; give both files of the model")
        if self.optimize and self.is_caffe:
            raise OptionError("--optimize is for ncnn models; a Caffe model has --fold-bn")
        if self.engine and self.is_caffe:
            raise OptionError("--engine is for ncnn models; a Caffe model runs in numpy")

    @property
    def is_caffe(self) -> bool:
        """Whether it is a Caffe model."""
        return self.proto is not None

    @property
    def files(self) -> tuple[str, str]:
        """The file of the structure and the file of the weights, "" where there is none."""
        pair = (self.proto, self.model) if self.is_caffe else (self.param, self.bin)
        return pair[0] or "", pair[1] or ""

    def load(self, threads: int | None = None, device: Device | None = None) -> Net | NcnnNet:
        """Return the network: on a device, or in ncnn with so many threads.

        Raises `ModelError`, and `OptionError` for a shape and where the package ncnn is missing.
        """
        structure, weights = self.files
        if self.is_caffe:
            caffe = ModelOptions(structure, weights, self.input_shape, self.ignore_field)
            return caffe.load(device)
        import int8calib

        return int8calib.load_ncnn(
            structure,
            weights,
            engine=self.engine,
            input_shapes=parse_input_shapes(self.input_shape),
            optimize=self.optimize,
            threads=threads,
            device=device,
        )


@dataclass(frozen=True)
class NumpyOptions(NetworkOptions):
    """The same for a command that looks into the network, which therefore runs in numpy."""

    def load_net(self) -> Net:
        """Return the network; of an ncnn model some layers may have no equivalent.

        Raises `ModelError`, and `OptionError` for a shape.
        """
        from int8calib.ncnn.execution.network import NcnnNet

        net = (self if self.is_caffe else replace(self, engine="numpy")).load()
        if isinstance(net, NcnnNet):
            raise OptionError("--engine runtime: this command needs a network in numpy")
        return net


@dataclass(frozen=True)
class StructureOptions(NetworkOptions):
    """The same where the weights may be left out."""

    needs_weights: bool = False


def add_network_arguments(
    parser: argparse.ArgumentParser, *, run: bool = True, engine: bool = True
) -> None:
    """Declare the options of `NetworkOptions`.

    `run`: for a command that runs the network; `engine`: which of both engines does it may be
    chosen.
    """
    group = parser.add_argument_group("model", "a Caffe model or an ncnn model")
    group.add_argument("--proto", metavar="FILE", help="the deploy prototxt of a Caffe model")
    or_none = "" if run else ", or none"
    group.add_argument("--model", metavar="FILE", help=f"the caffemodel with its weights{or_none}")
    group.add_argument(
        "--param",
        metavar="FILE",
        help="in place of --proto and --model: the structure file of an ncnn model, as pnnx, "
        "onnx2ncnn, caffe2ncnn or ncnnoptimize write it",
    )
    group.add_argument("--bin", metavar="FILE", help=f"the weight file of an ncnn model{or_none}")
    if run:
        group.add_argument(
            "--optimize",
            action="store_true",
            help="do first what ncnnoptimize does with an ncnn model (fold BatchNorm, fuse "
            "activations); the table is then for the optimized model, which --ncnn writes",
        )
    if run and engine:
        group.add_argument(
            "--engine",
            choices=("numpy", "runtime"),
            help="what runs an ncnn model: this package in numpy, or ncnn itself (extra ncnn); by "
            "default numpy where it has every layer and the sizes of the inputs are known",
        )
    add_input_shape_argument(group)
    add_ignore_field_argument(group)


@dataclass(frozen=True)
class DeviceOptions:
    """Which GPU runs the network, by its number; None: the CPU does."""

    gpu: int | None = None
    engine: str | None = None
    cluster: str | None = None

    def open(self) -> Device | None:
        """Return the GPU, None where none is wanted.

        Raises `OptionError` where it cannot be used, and beside what runs on a CPU.
        """
        if self.gpu is None:
            return None
        if self.engine == "runtime":
            raise OptionError("--gpu: --engine runtime runs on the CPU; leave one of both out")
        if self.cluster is not None:
            raise OptionError("--gpu: a cluster runs on its CPUs; leave --gpu or --cluster out")
        from int8calib import device

        return device.open_device(f"cuda:{self.gpu}")


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `DeviceOptions`."""
    group = parser.add_argument_group("GPU")
    group.add_argument(
        "--gpu",
        type=whole(),
        metavar="N",
        help="run the network and count its values on CUDA device N, 0 for the first (needs the "
        "extra gpu); values differ from the CPU's by float32 rounding",
    )


def say_device(console: Console, device: Device | None, batch: int) -> None:
    """Say which GPU runs how many images at a time."""
    if device is not None:
        hardware = f" ({device.hardware})" if device.hardware else ""
        console.say(f"on {device.name}{hardware}, {batch} images at a time")


def file_sha256(path: str) -> str | None:
    """Return the SHA-256 of a file, in hex; None for a pipe, which can be read once only."""
    if not stat.S_ISREG(file_mode(path)):
        return None
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def text_sha256(*parts: object) -> str:
    """Return the SHA-256 of the texts of `parts`, in hex; bytes count as they are."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogateescape")
        digest.update(f"{len(data)}:".encode() + data)
    return digest.hexdigest()


def model_fingerprint(model: ModelOptions, *, fold_bn: bool) -> dict[str, Any]:
    """Return what must be the same for statistics to be of the same network, as JSON values."""
    return {
        "prototxt": file_sha256(model.proto),
        "caffemodel": file_sha256(model.model),
        "fold-bn": fold_bn,
    }


def network_fingerprint(model: NetworkOptions, *, fold_bn: bool) -> dict[str, Any]:
    """Return the same for a Caffe or an ncnn model, of which nothing is folded."""
    structure, weights = model.files
    if model.is_caffe:
        return model_fingerprint(ModelOptions(structure, weights), fold_bn=fold_bn)
    return {
        "param": file_sha256(structure),
        "bin": file_sha256(weights),
        "optimize": model.optimize,
    }


@dataclass(frozen=True, eq=False)
class OpenedJob:
    """What is to be run over which images.

    Attributes
    ----------
    job : Job
        The network and the blobs whose statistics are wanted.
    images : ImageLoader
        The images for its inputs.
    fingerprint : dict
        What must be the same for two collections to belong together, as JSON values.
    device : dict
        What must be the same besides for one run to go on: the kind of its device.
    """

    job: Job[Any]
    images: ImageLoader
    fingerprint: dict[str, Any]
    device: dict[str, str]


def open_job(
    model: NetworkOptions,
    net: Net | NcnnNet,
    options: Options,
    images: ImageOptions,
    *,
    workers: int,
) -> OpenedJob:
    """Prepare a collection of statistics.

    Parameters
    ----------
    model
        The files of the network.
    net
        The network.
    options
        What to calibrate.
    images
        The image options.
    workers
        Images in parallel.

    Raises
    ------
    Int8CalibError
        Where the network cannot be calibrated, or its inputs cannot be filled.
    """
    from int8calib.caffe.engine.run import Net
    from int8calib.calibration.executor import device_fingerprint
    from int8calib.calibration.pipeline import prepare
    from int8calib.cli.loader import ImageLoader, wanted_blobs

    job: Job[Any] = prepare(net, options)
    versions = wanted_blobs(job.executor, job.blobs)
    loader = ImageLoader(images, net, job.inputs, versions, workers=workers)
    fingerprint = {
        **network_fingerprint(model, fold_bn=options.fold_bn),
        "input shapes": {name: list(shape[1:]) for name, shape in net.input_shapes.items()},
        "preprocessing": loader.preprocessing(),
        "blobs": list(job.blobs),
        **(net.graph.facts if isinstance(net, Net) else net.facts),
    }
    plain = json.loads(json.dumps(fingerprint))
    return OpenedJob(job, loader, plain, device_fingerprint(job.executor))
