"""What is known of each image: its class, from `--labels`, or its boxes, from `--boxes`.

Labels are a file of names and indices, or class folders; `int8calib.images.boxes` reads boxes.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from int8calib.cli.loader import ImageLoader, check_shapes
from int8calib.errors import ImageError, OptionError
from int8calib.files import file_mode, read_bounded
from int8calib.limits import MAX_LIST_BYTES
from int8calib.parsing import decode_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from int8calib.cli.image_options import ImageOptions
    from int8calib.evaluation.evaluate import Labeled
    from int8calib.images.batches import Batch
    from int8calib.images.boxes import Truth
    from int8calib.images.chunks import ImageChunk

LabelOf = Callable[[str], int]

MAX_DIGITS = 9
"""Digits of a class index."""
_WHOLE = frozenset(("stretch", "height", "width", "none"))
"""Ways to resize that show the network the whole picture and nothing else."""


class _Annotated:
    """The batches of a loader with what is known of each image: call it to start a pass."""

    def __init__(self, images: ImageLoader, known_of: Callable[[str], Any]) -> None:
        """Take the loader, and what tells by its name what is known of an image."""
        self._images = images
        self._known_of = known_of

    def __call__(self) -> Iterator[Labeled]:
        """Start a pass: batches in order; raises `ImageError` for an image nothing is known of."""
        return _labeled(self._images.batches(), self._known_of)

    def divide(self, images: int) -> Iterator[ImageChunk]:
        """Yield chunks for the workers of a cluster."""
        return self._images.divide(images)

    def reader(self) -> Callable[..., Iterator[Labeled]]:
        """Return what reads a chunk on a worker."""
        return partial(_read_labeled, self._known_of)

    def hear(self, lines: Iterable[str]) -> None:
        """Take lines on images that workers skipped."""
        self._images.hear(lines)

    def __len__(self) -> int:
        """How many images a pass has, if all can be read."""
        return len(self._images)


def _labeled(batches: Iterable[Batch], known_of: Callable[[str], Any]) -> Iterator[Labeled]:
    from int8calib.evaluation.evaluate import Labeled

    for batch in batches:
        yield Labeled(batch.blobs, [known_of(name) for name in batch.names])


def _read_labeled(
    known_of: Callable[[str], Any], chunk: ImageChunk, network: Any, tell: Callable[[str], None]
) -> Iterator[Labeled]:
    return _labeled(chunk.batches(partial(check_shapes, network), tell), known_of)


class LabeledImages(_Annotated):
    """The batches of a loader with labels: call it to start a pass."""

    def __init__(self, images: ImageLoader, where: str) -> None:
        """Read the labels; raises `ImageError` where they cannot be read."""
        super().__init__(images, read_labels(where))


class BoxedImages(_Annotated):
    """The batches of a loader with the labeled boxes of each image: call it to start a pass."""

    def __init__(self, images: ImageLoader, boxes_of: Callable[[str], Sequence[Truth]]) -> None:
        """Take the loader, and what gives an image's boxes by its name."""
        super().__init__(images, boxes_of)


def check_geometry(options: ImageOptions) -> None:
    """Raise `OptionError` where the input blob is not the whole picture as boxes measure it."""
    if options.resize not in _WHOLE:
        raise OptionError(
            f"--boxes: with --resize {options.resize} the network does not see the whole picture "
            "alone, so boxes cannot be compared; use --resize stretch"
        )
    if options.transpose:
        raise OptionError("--boxes: with --transpose boxes cannot be compared; leave it out")


def read_names(path: str) -> tuple[str, ...]:
    """Return the lines of a file of class names, by label; raises `OptionError`."""
    try:
        text = decode_text(read_bounded(Path(path), MAX_LIST_BYTES))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OptionError(f"--names {path}: cannot be read: {reason}") from None
    return tuple(line.strip() for line in text.splitlines())


def read_labels(where: str) -> LabelOf:
    """Read labels, and return what gives an image's class index by its name.

    Parameters
    ----------
    where
        A file of `name index` lines, or a folder of class folders: the classes are then numbered
        from 0 in the order of their names, and an image belongs to the one it lies in.

    Returns
    -------
    LabelOf
        It raises `ImageError` for an image that has no label, or where it is not clear which.

    Raises
    ------
    ImageError
        For labels that cannot be read; it names the file and line.
    """
    path = Path(where)
    try:
        folder = stat.S_ISDIR(file_mode(path))
        return _from_folders(path) if folder else _from_file(path)
    except OSError as error:
        raise ImageError(f"{path}: labels cannot be read: {error.strerror}") from None


def _from_file(path: Path) -> LabelOf:
    table = _read_table(path)
    # Images are named from the folder they were found in, labels from anywhere.
    short: dict[str, int | None] = {}
    for name, index in table.items():
        last = PurePosixPath(name).name
        short[last] = index if short.get(last, index) == index else None

    def label_of(name: str) -> int:
        name = _plain(name)
        last = PurePosixPath(name).name
        index = table.get(name, short.get(last))
        if index is None:
            if last in short:
                raise ImageError(
                    f"{path}: gives several images named {last} different labels; name them as "
                    f"{name} is named, with the folder"
                )
            raise ImageError(f"{path}: has no label for the image {name}")
        return index

    return label_of


def _read_table(path: Path) -> dict[str, int]:
    """The class index of each name in a file of labels; raises ImageError and OSError."""
    try:
        text = decode_text(read_bounded(path, MAX_LIST_BYTES, pipes=True))
    except UnicodeDecodeError as error:
        raise ImageError(f"{path}: labels cannot be read: it is no UTF-8 text ({error})") from None
    except ValueError as error:
        raise ImageError(f"{path}: labels cannot be read: {error}") from None
    table: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        place = f"{path}:{number}: {line[:60]!r}"
        *names, index = line.rsplit(None, 1)
        name = names[0] if names else ""
        if not name or not (index.isascii() and index.isdigit()):
            raise ImageError(f"{place}; expected an image's name and index, such as `a.jpg 7`")
        if len(index) > MAX_DIGITS:
            raise ImageError(
                f"{place}; the index has {len(index)} digits, expected at most {MAX_DIGITS}"
            )
        name = _plain(name)
        if table.setdefault(name, int(index)) != int(index):
            raise ImageError(f"{place}; the image has the label {table[name]} further above")
    if not table:
        raise ImageError(f"{path}: holds no labels; expected lines of an image's name and index")
    return table


def _plain(name: str) -> str:
    """A name with forward slashes."""
    return name.strip().replace("\\", "/")


def _from_folders(folder: Path) -> LabelOf:
    classes = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".")
    )
    if not classes:
        raise ImageError(f"{folder}: has no class folders; expected one folder of images per class")
    numbers = {name: index for index, name in enumerate(classes)}

    def label_of(name: str) -> int:
        for part in reversed(PurePosixPath(_plain(name)).parts[:-1]):
            if part in numbers:
                return numbers[part]
        raise ImageError(
            f"{folder}: the image {name} lies in none of its class folders {', '.join(classes[:5])}"
        )

    return label_of
