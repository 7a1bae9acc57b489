"""Which layers of a prototxt take part: Caffe's include and exclude rules against a net state."""

from __future__ import annotations

from dataclasses import dataclass

from caffe_proto import LayerParameter, caffe_pb2


@dataclass(frozen=True)
class NetState:
    """What the rules are held against: the phase (TEST), a level and named stages."""

    phase: int = caffe_pb2.TEST
    level: int = 0
    stages: frozenset[str] = frozenset()


def included(layer: LayerParameter, state: NetState) -> bool:
    """Whether `layer` takes part in `state`.

    With include rules one of them must hold; otherwise no exclude rule may. Source: Caffe's
    Net::FilterNet and Net::StateMeetsRule. The older `phase` field of a layer itself is no rule
    in Caffe and is not looked at.
    """
    if layer.include:
        return any(_meets(rule, state) for rule in layer.include)
    return not any(_meets(rule, state) for rule in layer.exclude)


def _meets(rule: caffe_pb2.NetStateRule, state: NetState) -> bool:
    """Whether `state` meets every condition of `rule`."""
    return (
        (not rule.HasField("phase") or rule.phase == state.phase)
        and (not rule.HasField("min_level") or state.level >= rule.min_level)
        and (not rule.HasField("max_level") or state.level <= rule.max_level)
        and state.stages.issuperset(rule.stage)
        and state.stages.isdisjoint(rule.not_stage)
    )
