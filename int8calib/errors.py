"""Every error that int8calib raises on purpose.

    Int8CalibError
    ├── ModelError              the network as given cannot be used
    │   ├── ModelFileError          a prototxt or caffemodel cannot be read or parsed
    │   ├── WeightsError            the caffemodel does not fit the prototxt
    │   ├── ShapeError              a layer cannot take the shapes that reach it
    │   └── UnsupportedLayerError   a needed layer type has no implementation
    ├── ImageError              calibration images or their preprocessing
    │   └── UnreadableImageError    one image cannot be used; the others can
    ├── StatisticsError         activations that cannot be counted, statistics that do not merge
    ├── OptionError             an option with a value that means nothing
    ├── TableError              a calibration table that breaks the reader's rules
    └── OutputError             a result that cannot be written

A message is one printable line of at most 500 characters: the file or layer, what was found, what
would be right.
"""

from __future__ import annotations

from caffe_proto.errors import one_line


class Int8CalibError(Exception):
    """Base of all errors raised on purpose; the command line turns it into one line and exit 2."""

    def __init__(self, message: str = "") -> None:
        """Keep the message, made fit for printing."""
        super().__init__(one_line(message))


class ModelError(Int8CalibError):
    """The network as given cannot be used."""


class ModelFileError(ModelError):
    """A prototxt, caffemodel or binaryproto cannot be read or parsed."""


class WeightsError(ModelError):
    """The caffemodel does not fit the prototxt: missing weights or wrong shapes."""


class ShapeError(ModelError):
    """A layer cannot take the bottom shapes that reach it."""


class UnsupportedLayerError(ModelError):
    """A layer type on a needed path has no implementation."""


class ImageError(Int8CalibError):
    """Calibration images are missing, unreadable, or do not fit the preprocessing."""


class UnreadableImageError(ImageError):
    """One image cannot be used; the others can."""


class StatisticsError(Int8CalibError):
    """Activations hold NaN or infinity, or statistics cannot be merged."""


class OptionError(Int8CalibError):
    """An option has a value that means nothing here."""


class TableError(Int8CalibError):
    """A calibration table breaks a rule of its reader; names file and line where there is one."""


class OutputError(Int8CalibError):
    """A result cannot be written."""
