"""Image options come in, batches for the inputs of a network go out, pass after pass."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from int8calib.cli.fingerprint import text_sha256
from int8calib.errors import ImageError, OptionError

if TYPE_CHECKING:
    from int8calib.arrays import Array
    from int8calib.caffe.engine.run import Net
    from int8calib.caffe.network.graph import Blob
    from int8calib.cli.console import Console
    from int8calib.cli.image_options import ImageOptions
    from int8calib.images import ImageSource, Preprocess
    from int8calib.images.batches import Batch


class ImageLoader:
    """All that the image options name, as batches: call it to start a pass over the images."""

    def __init__(
        self,
        options: ImageOptions,
        net: Net,
        needed: tuple[str, ...],
        blobs: Iterable[Blob] | None = None,
        *,
        workers: int = 1,
    ) -> None:
        """Open the sources of the `needed` inputs, that `blobs` depend on (by default the outputs).

        Raises `ImageError`, `OptionError`.
        """
        self._batch = _batch_size(options, net, net.graph.outputs if blobs is None else blobs)
        self._threads = max(1, min(2, workers))
        self._skips: dict[str, None] = {}
        places = _places(options.images, needed)
        self.inputs = {name: self._open(options, net, name, places[name]) for name in needed}

    def _open(
        self, options: ImageOptions, net: Net, name: str, where: str
    ) -> tuple[ImageSource, Preprocess | tuple[int, ...]]:
        from int8calib.images import Preprocess, open_source, read_mean

        source = open_source(
            where, limit=options.limit, shuffle=options.shuffle, seed=options.seed, blob=name
        )
        shape = tuple(net.input_shapes[name][1:])
        if source.preprocessed:
            return source, shape
        if len(shape) != 3:
            raise ImageError(
                f"{where}: images cannot fill input {name!r} of shape {(1, *shape)}; "
                "give it a .npy file"
            )
        resize_to = options.resize_to
        return source, Preprocess(
            (shape[0], shape[1], shape[2]),
            channel_order=options.channel_order,
            resize=options.resize,
            resize_to=None if resize_to is None else _one_or_pair(resize_to),
            mean=read_mean(options.mean),
            norm=options.norm,
            reduced_jpeg=options.fast_jpeg,
        )

    def __call__(self) -> Iterator[Mapping[str, Array]]:
        """Start a pass: batches in order, decoded ahead."""
        for batch in self.batches():
            yield batch.blobs

    def batches(self) -> Iterator[Batch]:
        """The same pass with the names of the images, which come from the first input's source."""
        from int8calib.images import batches_of_inputs

        return batches_of_inputs(self.inputs, self._batch, threads=self._threads, report=self._skip)

    def __len__(self) -> int:
        """How many images a pass has, if all can be read."""
        return min(len(source) for source, _ in self.inputs.values())

    def preprocessing(self) -> dict[str, dict[str, Any]]:
        """What changes the values of each input, as JSON values."""
        return {name: _described(how) for name, (_, how) in self.inputs.items()}

    def order(self) -> dict[str, Any]:
        """Which images come in which order and batches, as JSON values."""
        names = {name: text_sha256(*source.names) for name, (source, _) in self.inputs.items()}
        return {"images": names, "batch": self._batch}

    def _skip(self, message: str) -> None:
        self._skips[message] = None

    def tell(self, console: Console) -> None:
        """Say which files were passed over."""
        for name, (source, _) in self.inputs.items():
            if source.skipped:
                console.say(f"input {name}: {source.skipped} files are no images and were skipped")
        for message in self._skips:
            console.say(f"skipped: {message}")


def _batch_size(options: ImageOptions, net: Net, blobs: Iterable[Blob]) -> int:
    """`--batch`, or 1 where a layer on the way to `blobs` mixes or fixes the batch."""
    from int8calib.caffe.network.shapes import is_batchable

    if options.batch == 1 or is_batchable(net.graph, net.input_shapes, net.graph.ancestors(blobs)):
        return options.batch
    warnings.warn(
        f"{net.graph.source}: its layers need one image at a time; "
        f"--batch {options.batch} is not used",
        stacklevel=1,
    )
    return 1


def _described(how: Preprocess | tuple[int, ...]) -> dict[str, Any]:
    if isinstance(how, tuple):
        return {"shape": list(how)}
    return {
        "shape": list(how.shape),
        "channel order": how.channel_order,
        "resize": how.resize,
        "resize to": how.resize_to,
        "mean": text_sha256(how.mean_blob.shape, how.mean_blob.tobytes()),
        "norm": text_sha256(how.norm_blob.shape, how.norm_blob.tobytes()),
        "pad value": how.pad_value,
        "fast jpeg": how.reduced_jpeg,
    }


def _places(images: tuple[str, ...], needed: tuple[str, ...]) -> dict[str, str]:
    """Where each needed input comes from; raises `OptionError` unless each has one place."""
    named = {}
    for text in images:
        name, found, where = text.partition("=")
        if found and name in needed:
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
