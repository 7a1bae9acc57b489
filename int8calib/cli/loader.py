"""The loader of a command: batches for the inputs of a network, pass after pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from caffe_proto.errors import one_line
from int8calib.cli.image_options import images_at_a_time
from int8calib.cli.network import text_sha256
from int8calib.errors import ImageError, OptionError, ShapeError

if TYPE_CHECKING:
    from int8calib.arrays import Array, Shape
    from int8calib.caffe.engine.run import Net
    from int8calib.caffe.network.graph import Blob
    from int8calib.cli.console import Console
    from int8calib.cli.image_options import ImageOptions
    from int8calib.images import ImageSource, Preprocess
    from int8calib.images.batches import Batch
    from int8calib.images.chunks import ImageChunk
    from int8calib.ncnn.execution.network import NcnnNet

SKIPS_SHOWN = 20
"""Messages about skipped images that are printed without `--verbose`."""


class ImageLoader:
    """All that the image options name, as batches: call it to start a pass over the images.

    Attributes
    ----------
    send_files : bool
        Whether the workers of a cluster get the files themselves, not their paths.
    batch_size : int
        Images of a batch.

    Passes after the first must see the same values: an image that has changed, or that can no
    longer be read, ends the run with an error that names it.
    """

    def __init__(
        self,
        options: ImageOptions,
        net: Net | NcnnNet,
        needed: tuple[str, ...],
        blobs: Iterable[Blob] | None = None,
        *,
        workers: int = 1,
    ) -> None:
        """Open the sources.

        Parameters
        ----------
        options
            The image options of the command.
        net
            The network, which says what shapes its inputs have.
        needed
            The inputs to fill.
        blobs
            What is to be computed from them, by default the outputs.
        workers
            How many images run at a time; decoding takes at most two threads, but as many as
            this beside a GPU, which leaves the cores free.

        Raises
        ------
        ImageError, OptionError
            Where images or options do not fit the inputs.
        """
        from int8calib.device import device_of

        self.send_files = False
        self.batch_size = images_at_a_time(options, net, blobs)
        self._threads = max(1, workers if device_of(net) else min(2, workers))
        self._net, self._options = net, options
        self._skips: dict[str, None] = {}
        self._seen: dict[int, int | None] = {}
        places = _places(options.images, needed)
        self.inputs = {name: self._open(options, net, name, places[name]) for name in needed}

    def _open(
        self, options: ImageOptions, net: Net | NcnnNet, name: str, where: str
    ) -> tuple[ImageSource, Preprocess | tuple[int, ...]]:
        from int8calib.images import open_source

        shape = tuple(net.input_shapes[name][1:])
        source = open_source(
            where,
            limit=options.limit,
            shuffle=options.shuffle,
            seed=options.seed,
            blob=name,
            axes=2 if len(shape) == 2 else None,
        )
        if source.preprocessed:
            return source, _array_shape(shape, source)
        if 0 in shape or not shape:
            shape = _image_shape(options, shape, name)
        return source, preprocessing(options, shape, f"{where}: images cannot fill input {name!r}")

    def __call__(self) -> Iterator[Mapping[str, Array]]:
        """Start a pass: batches in order, decoded ahead."""
        for batch in self.batches():
            yield batch.blobs

    def batches(self) -> Iterator[Batch]:
        """Start a pass that tells the names of the images too, which the first input's source has.

        Raises `ImageError` for an image that is not what it was in an earlier pass.
        """
        from int8calib.images import batches_of_inputs

        stream = batches_of_inputs(
            self.inputs,
            self.batch_size,
            threads=self._threads,
            report=self._skip,
            check_shapes=partial(check_shapes, self._net),
        )
        done = 0
        for batch in stream:
            self._compare(range(done, batch.next_start), batch)
            done = batch.next_start
            yield batch
        self._compare(range(done, len(self)), None)

    def _compare(self, indices: range, batch: Batch | None) -> None:
        """Remember the checksums of these images (None for unreadable ones), or compare them."""
        checksums: dict[int, int | None] = dict.fromkeys(indices)
        if batch is not None:
            checksums.update(zip(batch.indices, batch.checksums, strict=True))
        for index, checksum in checksums.items():
            before = self._seen.setdefault(index, checksum)
            if before != checksum:
                source, _ = next(iter(self.inputs.values()))
                what = (
                    "could be read in the first pass over the images, and no longer can"
                    if checksum is None
                    else "could not be read in the first pass over the images, and now can"
                    if before is None
                    else "has changed since the first pass over the images"
                )
                raise ImageError(
                    f"{source.names[index]}: {what}; run again with files that stay as they are"
                )

    def divide(self, images: int) -> Iterator[ImageChunk]:
        """Yield chunks of about so many images, in whole batches, for the workers of a cluster."""
        from int8calib.images.chunks import divided

        return divided(self.inputs, self.batch_size, images, send=self.send_files)

    def reader(self) -> Callable[..., Iterable[Mapping[str, Array]]]:
        """Return what reads a chunk on a worker."""
        return read_blobs

    def hear(self, lines: Iterable[str]) -> None:
        """Take lines on images that workers skipped."""
        self._skips.update(dict.fromkeys(lines))

    def __len__(self) -> int:
        """How many images a pass has, if all can be read."""
        return min(len(source) for source, _ in self.inputs.values())

    def preprocessing(self) -> dict[str, dict[str, Any]]:
        """What changes the values of each input, as JSON values."""
        from int8calib.images import Preprocess

        shapes = self._net.input_shapes
        return {
            name: _described(how)
            if isinstance(how, Preprocess)
            else {"shape": list(shapes[name][1:])}
            for name, (_, how) in self.inputs.items()
        }

    def order(self) -> dict[str, Any]:
        """Which images come in which order and batches, as JSON values."""
        names = {name: text_sha256(*source.names) for name, (source, _) in self.inputs.items()}
        return {"images": names, "batch": self.batch_size}

    def _skip(self, message: str) -> None:
        self._skips[message] = None

    def print_skipped(self, console: Console) -> None:
        """Print which files were passed over or are damaged, the first `SKIPS_SHOWN` of each.

        And which options mean nothing to the images.
        """
        idle = self._options.idle_for_arrays()
        if idle and all(source.preprocessed for source, _ in self.inputs.values()):
            console.note(f"warning: {idle}")
        for name, (source, _) in self.inputs.items():
            if source.skipped:
                console.note(f"input {name}: {source.skipped} files are no images and were skipped")
            for problem in source.problems:
                console.note(one_line(problem))
            damaged = [
                f"{name}: damaged, only a part can be decoded: {text}"
                for name, text in sorted(source.damage.items())
            ]
            self._print_some(console, damaged, "are damaged and were used as they are")
        self._print_some(console, list(self._skips), "were skipped")

    def _print_some(self, console: Console, messages: list[str], what: str) -> None:
        """Print `messages`, one for each of some images, and how many these are."""
        for message in messages if console.verbose else messages[:SKIPS_SHOWN]:
            console.note(message)
        if messages:
            hidden = len(messages) > SKIPS_SHOWN and not console.verbose
            more = "; --verbose names them all" if hidden else ""
            console.note(f"{len(messages)} of {len(self)} images {what}{more}")


def check_shapes(network: Any, shapes: Mapping[str, Shape]) -> None:
    """Raise `ShapeError` where a layer of a net, or of an executor, cannot run on such an item.

    Layers that cannot run on the shape of the prototxt either do not count. What runs in ncnn
    tells when it runs.
    """
    from int8calib.caffe.network.shapes import reach

    graph = getattr(network, "graph", None)
    if graph is None:
        return
    inputs = getattr(network, "input_shapes", None) or network.inputs
    known = reach(graph, inputs).blocked
    given = {name: (1, *shape) for name, shape in shapes.items()}
    for layer, obstacle in reach(graph, {**inputs, **given}).blocked.items():
        if layer not in known:
            raise ShapeError(str(obstacle))


def read_blobs(
    chunk: ImageChunk, network: Any, tell: Callable[[str], None]
) -> Iterator[Mapping[str, Array]]:
    """Read the batches of a chunk, on a worker."""
    for batch in chunk.batches(partial(check_shapes, network), tell):
        yield batch.blobs


def _array_shape(shape: Shape, source: ImageSource) -> Shape:
    """The shape of one item of arrays; -1 for a size that may be any."""
    if not shape:
        return (-1,) * source.load(0).ndim
    if len(shape) == 3:
        return (shape[0] or -1, -1, -1)
    return tuple(size or -1 for size in shape)


def _image_shape(options: ImageOptions, shape: Shape, name: str) -> Shape:
    """The shape of an input that takes images, where the file leaves sizes out."""
    if len(shape) == 3 and shape[0] and options.resize == "none":
        return (shape[0], 1, 1)  # each image has a size of its own
    sizes = ",".join(str(size or letter) for size, letter in zip(shape, "CHW", strict=False))
    raise OptionError(
        f"the model does not say how large its input {name!r} is; give --input-shape "
        f"{name}=1,{sizes or 'C,H,W'} with its sizes"
    )


def wanted_blobs(executor: Any, blobs: Iterable[str]) -> Iterable[Blob] | None:
    """Return the versions that these keys of a Caffe network mean; None for another one."""
    versions = getattr(executor, "versions", None)
    return None if versions is None else versions(blobs)


def preprocessing(options: ImageOptions, shape: tuple[int, ...], refusal: str) -> Preprocess:
    """How images become an input blob of `shape`, the batch left out.

    Raises `ImageError` that begins with `refusal` where the blob takes no images, and what
    `Preprocess` raises.
    """
    from int8calib.images import Preprocess, read_mean
    from int8calib.images.decode import quiet_opencv

    quiet_opencv()
    if len(shape) != 3:
        raise ImageError(f"{refusal} of shape {(1, *shape)}; give it a .npy file")
    resize_to = options.resize_to
    return Preprocess(
        (shape[0], shape[1], shape[2]),
        channel_order=options.channel_order,
        resize=options.resize,
        resize_to=None if resize_to is None else _one_or_pair(resize_to),
        mean=read_mean(options.mean),
        norm=options.norm,
        reduced_jpeg=options.fast_jpeg,
        transpose=options.transpose,
    )


def _described(how: Preprocess) -> dict[str, Any]:
    """The preprocessing of one input as JSON values."""
    described = {
        "shape": list(how.shape),
        "channel order": how.channel_order,
        "resize": how.resize,
        "resize to": how.resize_to,
        "mean": text_sha256(how.mean_blob.shape, how.mean_blob.tobytes()),
        "norm": text_sha256(how.norm_blob.shape, how.norm_blob.tobytes()),
        "pad value": how.pad_value,
        "fast jpeg": how.reduced_jpeg,
    }
    # Only where it is set, so that statistics of earlier versions still fit.
    return {**described, "transpose": True} if how.transpose else described


def _places(images: tuple[str, ...], needed: tuple[str, ...]) -> dict[str, str]:
    """Where each needed input comes from; raises `OptionError` unless each has one place."""
    named: dict[str, str] = {}
    for text in images:
        name, equals, where = text.partition("=")
        if equals and name in named:
            raise OptionError(f"--images {text}: input {name!r} has {named[name]} already")
        if equals and name in needed:
            named[name] = where
        elif len(images) == 1 and len(needed) == 1:
            named[needed[0]] = text
        else:
            raise OptionError(
                f"--images {text}: the network needs {', '.join(needed)}; give NAME=WHERE for each"
            )
    missing = [name for name in needed if name not in named]
    if missing:
        raise OptionError(f"no images are given for input {missing[0]!r}; give {missing[0]}=WHERE")
    return named


def _one_or_pair(values: tuple[int, ...]) -> int | tuple[int, int]:
    return values[0] if len(values) == 1 else (values[0], values[1])
