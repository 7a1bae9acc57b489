"""Sizes that a parameter gives as an expression of the bottoms' sizes, such as ``*(0w,2),0h``.

Names are functions before their operands, ``0w`` is the width of bottom 0 (h, d, c alike), and
several sizes stand one after another. Source: ncnn's src/expression.cpp.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

from int8calib.arrays import Shape
from int8calib.errors import ShapeError, UnsupportedLayerError
from int8calib.ncnn.translate.layers.registry import extents

_TWO: Mapping[str, Callable[[float, float], float]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "//": lambda a, b: a // b,
    "max": max,
    "min": min,
    "pow": lambda a, b: float(a) ** b,
}
_ONE: Mapping[str, Callable[[float], float]] = {
    "abs": abs,
    "neg": lambda a: -a,
    "square": lambda a: a * a,
    "sqrt": lambda a: math.sqrt(a),
    "trunc": math.trunc,
    "ceil": math.ceil,
    "floor": math.floor,
    "round": lambda a: math.floor(a + 0.5) if a >= 0 else math.ceil(a - 0.5),
}
_SIZE = re.compile(r"(\d)([whdc])")


def evaluate(expression: str, bottoms: Sequence[Shape]) -> list[int]:
    """Evaluate a list of sizes.

    Parameters
    ----------
    expression
        Its text, without quotes.
    bottoms
        The shapes that it names.

    Returns
    -------
    list of int
        Fractions are cut off.

    Raises
    ------
    UnsupportedLayerError
        For a function that is not known here.
    ShapeError
        For an expression that means nothing.
    """
    stack: list[float] = []
    try:
        for word in reversed(re.findall(r"[^(),]+", expression)):
            if size := _SIZE.fullmatch(word):
                stack.append(extents(bottoms[int(size[1])])[size[2]])
            elif word in _TWO:
                stack.append(_TWO[word](stack.pop(), stack.pop()))
            elif word in _ONE:
                stack.append(_ONE[word](stack.pop()))
            elif re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?", word):
                stack.append(float(word) if re.search(r"[.e]", word) else int(word))
            else:
                raise UnsupportedLayerError(f"{expression!r}: {word!r} is not supported")
        return [int(size) for size in reversed(stack)]
    except (IndexError, ArithmeticError, ValueError) as error:
        raise ShapeError(f"the size {expression!r} cannot be computed: {error}") from None
