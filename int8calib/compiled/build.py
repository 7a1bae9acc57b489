"""A Python function and its signature come in, object code comes out: numba's one home.

Importing this module loads numba, so it is imported only where a kernel is not in the cache yet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

from int8calib.compiled.machine import ObjectCode, emit
from int8calib.compiled.signature import Signature


def build(function: Callable[..., Any], signature: Signature, *, reorder: bool) -> ObjectCode:
    """Compile `function` for this processor; raises numba's errors for what it cannot compile.

    `reorder`: sums may be added up in any order, products fused into them.
    """
    rules: dict[str, Any] = {
        "error_model": "numpy",
        "fastmath": {"reassoc", "contract"} if reorder else False,
    }
    # Put into the entry as it is, so that it is not compiled by itself as well.
    loops = numba.njit(function, inline="always", **rules)
    entry = numba.cfunc(_c_signature(signature), **rules)(_entry(loops, signature))
    return emit(entry.inspect_llvm(), entry.native_name)


def _c_signature(signature: Signature) -> Any:
    types: list[Any] = []
    for parameter in signature.parameters:
        item = getattr(numba, parameter.item)
        if parameter.axes:
            types += [numba.types.CPointer(item), *[numba.int64] * parameter.axes]
        else:
            types.append(item)
    result = getattr(numba, signature.result) if signature.result else numba.void
    return result(*types)


def _entry(loops: Callable[..., Any], signature: Signature) -> Callable[..., Any]:
    """A function of pointers, sizes and scalars that calls `loops` with arrays and scalars.

    numba compiles functions of a fixed number of parameters only, so it is made as text.
    """
    names: list[str] = []
    arguments: list[str] = []
    for i, parameter in enumerate(signature.parameters):
        sizes = [f"p{i}_{axis}" for axis in range(parameter.axes)]
        names += [f"p{i}", *sizes]
        arguments.append(f"carray(p{i}, ({', '.join(sizes)},))" if sizes else f"p{i}")
    text = f"def entry({', '.join(names)}):\n    return loops({', '.join(arguments)})\n"
    scope: dict[str, Any] = {"loops": loops, "carray": numba.carray}
    exec(text, scope)
    made: Callable[..., Any] = scope["entry"]
    return made
