"""`--labels` and the batches of a pass come in; batches with the class of each image go out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from int8calib.cli.loader import ImageLoader
from int8calib.errors import ImageError

if TYPE_CHECKING:
    from int8calib.evaluation.evaluate import Labelled

LabelOf = Callable[[str], int]


class LabelledImages:
    """The batches of `images` with labels: call it to start a pass."""

    def __init__(self, images: ImageLoader, where: str) -> None:
        """Read the labels; raises `ImageError` where they cannot be read."""
        self._images = images
        self._label_of = read_labels(where)

    def __call__(self) -> Iterator[Labelled]:
        """Batches in order, each with its labels; raises `ImageError` for an image without one."""
        from int8calib.evaluation.evaluate import Labelled

        for batch in self._images.batches():
            yield Labelled(batch.blobs, [self._label_of(name) for name in batch.names])


def read_labels(where: str) -> LabelOf:
    """What gives an image's class index by its name.

    `where` is a file of `name index` lines, or a folder of class folders: the classes are then
    numbered from 0 in the order of their names, and an image belongs to the one it lies in.
    """
    path = Path(where)
    return _from_folders(path) if path.is_dir() else _from_file(path)


def _from_file(path: Path) -> LabelOf:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{path}: labels cannot be read ({reason})") from None
    table: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, _, index = line.strip().rpartition(" ")
        if not name or not index.isdecimal():
            raise ImageError(f"{path}:{number}: {line[:60]!r}; expected an image's name and index")
        table[name.strip()] = int(index)
    short = {PurePath(name).name: index for name, index in table.items()}

    def label_of(name: str) -> int:
        # Images are named from the folder they were found in, labels from anywhere.
        found = table.get(name, short.get(PurePath(name).name))
        if found is None:
            raise ImageError(f"{path}: has no label for the image {name}")
        return found

    return label_of


def _from_folders(folder: Path) -> LabelOf:
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if not classes:
        raise ImageError(f"{folder}: has no class folders; expected one folder of images per class")
    numbers = {name: index for index, name in enumerate(classes)}

    def label_of(name: str) -> int:
        for part in reversed(PurePath(name).parts[:-1]):
            if part in numbers:
                return numbers[part]
        raise ImageError(
            f"{folder}: the image {name} lies in none of its class folders {', '.join(classes[:5])}"
        )

    return label_of
