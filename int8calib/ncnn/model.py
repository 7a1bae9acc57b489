"""An ncnn model: its structure and weights, loaded from a pair of files and saved as one."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from int8calib.errors import ModelFileError, OutputError
from int8calib.files import read_bounded, write_all
from int8calib.limits import MAX_MODEL_BYTES
from int8calib.ncnn.param import MAGIC, NcnnLayer, format_param, parse_param
from int8calib.ncnn.schema import unknown_parameters
from int8calib.ncnn.weights import read_weights, write_weights
from int8calib.parsing import BOM

MOST_PARAM_BYTES = 64 * 2**20
"""Bytes of a structure file: 64 MiB."""
_MARKED = f"{BOM}{MAGIC}"


@dataclass(frozen=True, eq=False)
class NcnnModel:
    """An ncnn model in memory.

    Attributes
    ----------
    layers : tuple of NcnnLayer
        In running order, with weights.
    source : str
        How errors call it: the name of the structure file.
    notes : tuple of str
        What a user should know of how it was made.
    """

    layers: tuple[NcnnLayer, ...]
    source: str
    notes: tuple[str, ...] = ()

    def layer(self, name: str) -> NcnnLayer:
        """Return the layer called `name`.

        Parameters
        ----------
        name : str
            The layer's name.

        Returns
        -------
        NcnnLayer

        Raises
        ------
        KeyError
            Where there is none.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)


def load_model(param: str | os.PathLike[str], weights: str | os.PathLike[str]) -> NcnnModel:
    """Load an ncnn model from its `.param` and `.bin`; raises `ModelFileError`.

    Warns of parameters that a layer's type does not have.
    """
    layers = parse_param(read_text(param), str(Path(param)))
    _warn_of_unknown(layers, str(Path(param)))
    try:
        data = read_bounded(weights, MAX_MODEL_BYTES)
    except OSError as error:
        message = f"{Path(weights)}: cannot be read: {error.strerror or error}"
        raise ModelFileError(message) from error
    return NcnnModel(read_weights(layers, data, str(Path(weights))), str(Path(param)))


def _warn_of_unknown(layers: Iterable[NcnnLayer], source: str) -> None:
    """Warn where ncnn passes over a parameter: it has none of that id for the layer's type."""
    found = [(layer, unknown) for layer in layers if (unknown := unknown_parameters(layer))]
    if found:
        layer, unknown = found[0]
        more = f", and {len(found) - 1} more layers have such" if len(found) > 1 else ""
        warnings.warn(
            f"{source}:{layer.line}: layer {layer.name!r} ({layer.type}): "
            f"{', '.join(f'{key}=' for key in unknown)} is no parameter of this type and has no "
            f"effect, as in ncnn{more}",
            stacklevel=3,
        )


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a structure file; raises `ModelFileError` where it is none."""
    try:
        data = read_bounded(path, MOST_PARAM_BYTES)
        if data.startswith(
            tuple(_MARKED.encode(name) for name in ("utf-8", "utf-16le", "utf-16be"))
        ):
            raise ModelFileError(
                f"{Path(path)}: begins with a byte order mark, at which ncnn stops; save it as "
                "UTF-8 without one"
            )
        return data.decode("utf-8")
    except OSError as error:
        message = f"{Path(path)}: cannot be read: {error.strerror or error}"
        raise ModelFileError(message) from error
    except UnicodeDecodeError:
        message = f"{Path(path)}: no text, name the .param file (not .bin or .param.bin)"
        raise ModelFileError(message) from None


def save_model(
    layers: Iterable[NcnnLayer],
    param: str | os.PathLike[str],
    weights: str | os.PathLike[str],
    *,
    width: int = 24,
) -> None:
    """Write both files of a model or none; raises `OutputError`, for swapped names too."""
    if Path(param).suffix == ".bin" and Path(weights).suffix == ".param":
        raise OutputError(f"{param} and {weights} are swapped: the structure (.param) comes first")
    structure, data = encode_model(layers, width=width)
    write_all({os.fspath(param): structure, os.fspath(weights): data})


def encode_model(layers: Iterable[NcnnLayer], *, width: int = 24) -> tuple[str, bytes]:
    """Encode a model as the content of its `.param` and `.bin`."""
    layers = tuple(layers)
    return format_param(layers, width=width), write_weights(layers)
