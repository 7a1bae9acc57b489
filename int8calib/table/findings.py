"""What reading a table's text gives: the table as far as it could be read, and what is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from int8calib.errors import TableError
from int8calib.table.model import CalibrationTable

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a table.

    `error`: ncnn would misread the table or compute nonsense; `warning`: it works, but somebody
    should look. `line` counts from 1 and is None where no text line belongs to the finding.
    """

    severity: Severity
    line: int | None
    layer: str | None
    message: str

    def located(self, name: str) -> str:
        """One line of text, `name:line: message`, for the table file `name`."""
        place = name if self.line is None else f"{name}:{self.line}"
        return f"{place}: {self.message}"


@dataclass(frozen=True)
class Scan:
    """A table read leniently: rows that cannot be used are left out and stand in `findings`.

    `lines` maps a layer's name to the line of its weight row where the format has lines.
    """

    table: CalibrationTable
    findings: tuple[Finding, ...] = ()
    lines: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))


def sort_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, then by line (findings without one last), layer and message."""
    return sorted(
        findings,
        key=lambda f: (
            f.severity != "error",
            f.line is None,
            f.line or 0,
            f.layer or "",
            f.message,
        ),
    )


def raise_first_error(findings: Iterable[Finding], name: str) -> None:
    """Raise TableError for the topmost error, located in the file `name`; warnings pass."""
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        first = min(errors, key=lambda f: (f.line is None, f.line or 0))
        raise TableError(first.located(name))
