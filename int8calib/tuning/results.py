"""What a tuning may be told, and what it found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from int8calib.caffe.engine.run import Net
from int8calib.errors import OptionError
from int8calib.evaluation.results import Evaluation
from int8calib.table.model import CalibrationTable

TECHNIQUES = ("equalize", "copies", "rounding", "refit", "bias")


@dataclass(frozen=True)
class TuneOptions:
    """What a tuning may be told.

    change_model
        True lets weights and biases change too: the result is a table and a model.
    techniques
        which changes are allowed then: `equalize` (even channels, centered class scores),
        `copies` (channels whose rounding costs most are copied, so that it is finer),
        `rounding` (weights rounded for least output error), `refit` (weights that make good what
        layers before lose), `bias` (mean errors taken back).
    more_work
        multiply-adds that copies of channels may add, as a share of those of the net.
    max_drop
        points of top-1 that INT8 may lose on the validation images; needs labels.
    min_agreement
        the share (0..1) of validation images that must keep their best class.
    max_float_layers
        layers that may stay in float where a target is not met otherwise; None: any number.
    images
        most images that are used, tuning and validation together.
    validation
        the share of the images that only decide between results.
    seconds
        after about that time the best result so far is returned; None: no limit.
    memory
        bytes that activations may take; fewer images are tuned on where they need more.
    scores
        the blob of class scores, by default the only output if that is a vector.
    outputs
        the blobs in which INT8 is compared with float; by default the network's outputs, and in
        place of those that cannot run the last blobs before them.
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

    def __post_init__(self) -> None:
        """Refuse values that mean nothing; raises `OptionError`."""
        for name in self.techniques:
            if name not in TECHNIQUES:
                raise OptionError(f"technique {name!r}: expected one of {', '.join(TECHNIQUES)}")
        if not 0 <= self.more_work <= 1:
            raise OptionError(f"more work {self.more_work:g}: expected a share, 0 to 1")
        if self.max_drop is not None and not -100 <= self.max_drop <= 100:
            raise OptionError(f"max drop {self.max_drop:g}: expected points of top-1 up to 100")
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 1:
            raise OptionError(f"min agreement {self.min_agreement:g}: expected a share, 0 to 1")
        if self.max_float_layers is not None and self.max_float_layers < 0:
            raise OptionError(f"max float layers {self.max_float_layers}: expected 0 or more")
        if self.images < 2:
            raise OptionError(f"{self.images} images: expected at least 2, to tune and to validate")
        if not 0 < self.validation < 1:
            raise OptionError(f"validation share {self.validation:g}: expected between 0 and 1")
        if self.seconds is not None and self.seconds <= 0:
            raise OptionError(f"{self.seconds:g} seconds: expected more than 0")


@dataclass(frozen=True)
class Choice:
    """What was decided for one layer, and why: `what` is short, `why` one sentence."""

    layer: str
    what: str
    why: str


@dataclass(frozen=True, eq=False)
class Tuning:
    """The result of a tuning.

    table, net
        the table, and the float network it is for: the one given, or a changed one that computes
        nearly the same (`changed`).
    chosen
        the name of the result in `evidence` that the table is.
    choices
        what was decided, layer by layer.
    evidence
        plain tables and tuned ones over the validation images, which none was fitted to; None
        where the time was over before.
    images
        how many images were tuned on.
    stopped
        why the search ended early (`time`, `interrupted`), or None.
    target_met
        whether the targets hold on the validation images; None without a target.
    notes
        what else there is to say.
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

    def as_dict(self) -> dict[str, Any]:
        """The decisions and their evidence as JSON values, without the table."""
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
