"""Fresh ratios, stage shares and memory against stored ones: what has become clearly worse.

Ratios hold on any machine to some degree, times do not. A ratio counts as worse only where both
the clock and the processor time say so: on a busy machine one of them alone may lie.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WORSE = 1.25
"""A ratio may grow by this factor."""
SHARE = 0.12
"""A stage's share of the processor time may grow by this."""
NETWORKS = ("squeezenet_v1.1", "mobilenet_v1")
"""A network heavy in convolutions and one heavy in depthwise ones."""


def regressions(stored: Mapping[str, Any], fresh: Mapping[str, Any]) -> list[str]:
    """One line for each ratio or share that has become worse; both are results."""
    lines = []
    for name, found in fresh.get("ratios", {}).items():
        before = stored.get("ratios", {}).get(name)
        if before is None:
            continue
        for contender in ("process", "engine"):
            factors = [
                found[contender][kind]["median"] / before[contender][kind]["median"]
                for kind in ("ratio", "cpu_ratio")
            ]
            if min(factors) > WORSE:
                ratio = found[contender]["ratio"]["median"]
                lines.append(
                    f"{name}: {contender} takes {ratio:.2f} OpenCV forwards, "
                    f"{min(factors):.2f} times what is stored"
                )
    for name, found in fresh.get("stages", {}).items():
        before = stored.get("stages", {}).get(name, {"shares": {}})
        for stage, share in found["shares"].items():
            old = before["shares"].get(stage)
            if old is not None and share > old + SHARE:
                lines.append(
                    f"{name}: {stage} takes {100 * share:.0f} % of the time, "
                    f"{100 * old:.0f} % is stored"
                )
        peak, old_peak = found.get("peak_bytes"), before.get("peak_bytes")
        if peak and old_peak and peak > WORSE * old_peak:
            lines.append(
                f"{name}: {peak / 1e6:.0f} MB of memory at most, {old_peak / 1e6:.0f} MB is stored"
            )
    return lines


def compared(stored: Mapping[str, Any], fresh: Mapping[str, Any]) -> list[str]:
    """The networks that both results hold, and whose runs have as many images."""
    return [
        name
        for name, found in fresh.get("ratios", {}).items()
        if stored.get("ratios", {}).get(name, {}).get("images") == found["images"]
    ]
