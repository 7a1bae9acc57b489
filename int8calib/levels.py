"""The whole numbers that quantized values become: how far they reach on each side of zero."""

from __future__ import annotations

LEVELS = 127
"""INT8: activations, and weights as a rule. Source: float2int8 of ncnn's
src/layer/x86/x86_usability.h, which clamps to -127..127."""

WINOGRAD_LEVELS = 31
"""Weights of 6 bits, for layers that ncnn may run by int8 winograd. Source: ncnn's
tools/quantize/ncnn2table.cpp."""
