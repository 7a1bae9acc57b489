"""The options of a tuning, and its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from int8calib.caffe.engine.run import Net
from int8calib.errors import OptionError
from int8calib.evaluation.results import Evaluation
from int8calib.limits import check_flag, check_real, check_whole, name_list
from int8calib.ncnn.rounded import RoundedWeights
from int8calib.table.model import CalibrationTable

TECHNIQUES = ("equalize", "copies", "rounding", "refit", "bias")


@dataclass(frozen=True)
class TuneOptions:
    """Options of a tuning.

    Attributes
    ----------
    change_model : bool
        True lets weights and biases change too: the result is a table and a model.
    techniques : tuple of str
        Which changes are allowed then: `equalize` (channels equalized, class scores centered),
        `copies` (channels whose rounding costs most are split, so that it is finer),
        `rounding` (weights rounded for least output error), `refit` (weights that make good what
        layers before lose), `bias` (mean errors taken back).
    more_work : float
        Multiply-adds that split channels may add, as a share of those of the network.
    max_drop : float or None
        Points of top-1 that INT8 may lose on the validation images, which need labels; of a
        detector points of mean average precision, without labels those of the float network's
        boxes.
    min_agreement : float or None
        The share (0..1) of validation images that must keep their best class; of a detector's
        boxes that must stay.
    max_float_layers : int or None
        Layers that may stay in float where a target is not met otherwise; None: any number.
    images : int
        Most images that are used, tuning and validation together.
    validation : float
        The share of the images that only decide between results.
    offsets : bool
        Whether the INT8 model will store blobs that are never negative with an offset, so that
        they have 255 levels; only where a model of ncnn is written.
    seconds : float or None
        After about that time the best result so far is returned; None: no limit.
    memory : int
        Bytes that activations may take; fewer images are tuned on where they need more.
    scores : str or None
        The blob of class scores, by default the only output if that is a vector.
    outputs : tuple of str or None
        The blobs in which INT8 is compared with float; by default the network's outputs, and in
        place of those that cannot run the last blobs before them.
    kind : str or None
        What the network is for, as in `evaluate`.

    Raises
    ------
    OptionError
        For values that mean nothing.
    """

    change_model: bool = False
    techniques: tuple[str, ...] = TECHNIQUES
    more_work: float = 0.1
    max_drop: float | None = None
    min_agreement: float | None = None
    max_float_layers: int | None = None
    images: int = 160
    validation: float = 0.25
    seconds: float | None = None
    memory: int = 2 << 30
    scores: str | None = None
    outputs: tuple[str, ...] | None = None
    kind: str | None = None
    offsets: bool = False

    def __post_init__(self) -> None:
        """Refuse values that mean nothing; raises `OptionError`."""
        self._check_types()
        for name in name_list(self.techniques, "techniques", f"{', '.join(TECHNIQUES)}"):
            if name not in TECHNIQUES:
                raise OptionError(f"technique {name!r}: expected one of {', '.join(TECHNIQUES)}")
        if not 0 <= self.more_work <= 1:
            raise OptionError(f"more work {self.more_work:g}: expected a share, 0 to 1")
        if self.max_drop is not None and not -100 <= self.max_drop <= 100:
            raise OptionError(f"max drop {self.max_drop:g}: expected points of top-1 up to 100")
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 1:
            raise OptionError(f"min agreement {self.min_agreement:g}: expected a share, 0 to 1")
        if self.images < 2:
            raise OptionError(f"{self.images} images: expected at least 2, to tune and to validate")
        if not 0 < self.validation < 1:
            raise OptionError(f"validation share {self.validation:g}: expected between 0 and 1")
        if self.seconds is not None and self.seconds <= 0:
            raise OptionError(f"{self.seconds:g} seconds: expected more than 0")

    def _check_types(self) -> None:
        """Raise `OptionError` for values of another type, such as a text of digits."""
        check_flag(self.change_model, "change_model")
        check_flag(self.offsets, "offsets")
        check_whole(self.images, "images")
        check_whole(self.memory, "memory")
        if self.max_float_layers is not None:
            check_whole(self.max_float_layers, "max float layers")
        for what in ("more_work", "max_drop", "min_agreement", "validation", "seconds"):
            if getattr(self, what) is not None:
                check_real(getattr(self, what), what.replace("_", " "))
        if self.outputs is not None:
            name_list(self.outputs, "outputs")


def checked_tuning(tuning: TuneOptions | None) -> TuneOptions:
    """Return the options, those by default for None; raises `OptionError` for anything else."""
    if tuning is not None and not isinstance(tuning, TuneOptions):
        raise OptionError(
            f"tuning of type {type(tuning).__name__}; expected TuneOptions, such as "
            "int8calib.TuneOptions(images=80)"
        )
    return tuning or TuneOptions()


@dataclass(frozen=True)
class Choice:
    """What was decided for one layer, and why: `what` is short, `why` one sentence."""

    layer: str
    what: str
    why: str


@dataclass(frozen=True, eq=False)
class Tuning:
    """The result of a tuning.

    Attributes
    ----------
    table : CalibrationTable
        The table.
    net : Net
        The float network it is for: the one given, or a changed one that computes nearly the
        same.
    changed : bool
        Whether it is a changed one.
    chosen : str
        The name of the result in `evidence` that the table is.
    choices : tuple of Choice
        What was decided, layer by layer.
    evidence : Evaluation or None
        Plain tables and tuned ones over the validation images, which none was fitted to; None
        where the time was over before.
    images : int
        How many images were tuned on.
    stopped : str or None
        Why the search ended early (`time`, `interrupted`), or None.
    target_met : bool or None
        Whether the targets hold on the validation images; None without a target.
    notes : tuple of str
        What else there is to say.
    rounded : mapping of str to RoundedWeights
        By layer, where weights changed: the INT8 levels that its weights in `net` lie on.
    """

    table: CalibrationTable
    net: Net
    changed: bool
    chosen: str
    choices: tuple[Choice, ...]
    evidence: Evaluation | None
    images: int
    stopped: str | None
    target_met: bool | None
    notes: tuple[str, ...] = field(default=())
    rounded: Mapping[str, RoundedWeights] = field(default_factory=lambda: MappingProxyType({}))

    def as_dict(self) -> dict[str, Any]:
        """Return the decisions and their evidence as JSON values.

        Returns
        -------
        dict
            Without the table.
        """
        result: Mapping[str, Any] = {
            "chosen": self.chosen,
            "model changed": self.changed,
            "tuned on": self.images,
            "stopped": self.stopped,
            "target met": self.target_met,
            "choices": [vars(choice) for choice in self.choices],
            "validation": None if self.evidence is None else self.evidence.as_dict(),
            "notes": list(self.notes),
        }
        return dict(result)
