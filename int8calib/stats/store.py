"""All blobs of a run: ranges and histograms by blob, merged over shards, as a file and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from int8calib.stats.activation import Histogram, Range


@dataclass(frozen=True, eq=False)
class Statistics:
    """What a collection learned of each blob, keyed by the blob version's text form.

    `ranges` and `histograms` have the same keys (histograms may be missing after the first of
    two phases); `meta` says where they come from (JSON values only).
    """

    ranges: Mapping[str, Range]
    histograms: Mapping[str, Histogram]
    meta: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def images(self) -> int:
        """How many images were looked at."""
        return max((found.images for found in self.ranges.values()), default=0)
