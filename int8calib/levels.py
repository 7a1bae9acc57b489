"""The whole numbers that quantized values become: how far they reach on each side of zero."""

from __future__ import annotations

LEVELS = 127
"""INT8: activations, and weights as a rule. Source: float2int8 of ncnn's
src/layer/x86/x86_usability.h, which clamps to -127..127."""

WINOGRAD_LEVELS = 31
"""Weights of 6 bits, for layers that ncnn may run by int8 winograd. Source: ncnn's
tools/quantize/ncnn2table.cpp."""

WINOGRAD_SUM = (2**31 - 1) // 576
"""The largest whole sum of an output that comes out of ncnn's int8 winograd F(4,3) unharmed: its
transforms multiply it by 576, in 32 bits. Sums and partial sums in between may wrap around, since
they wrap back. Source: ncnn's src/layer/x86/convolution_3x3_winograd_int8.h and its kin."""

WINOGRAD_ROW_SUM = WINOGRAD_SUM // LEVELS
"""What |levels| of the weights of one output may add up to where int8 winograd runs: 29356."""
