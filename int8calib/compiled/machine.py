"""From a Python function to object code, by numba, and from object code to an address, by llvmlite.

Both are imported where they are used only: numba takes a third of a second, and is needed just for
kernels that are not in the cache yet.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from int8calib.compiled.signature import Signature

DONE = (0, -2)
"""Status of a function that has returned a value, or None; others tell of an error."""


@dataclass(frozen=True)
class ObjectCode:
    """Machine code in the system's object format.

    Attributes
    ----------
    symbol : str
        The function to run. It takes the addresses of its result and of the error, then the
        arguments, and returns a status (numba's calling convention).
    outside : tuple of str
        Functions and variables that it may use and that are not in `code`.
    code : bytes
    """

    symbol: str
    outside: tuple[str, ...]
    code: bytes


def processor() -> str:
    """The name and all features of this processor: code for another one may not run here."""
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features().flatten()
    return f"{sys.platform} {llvm.get_process_triple()} {llvm.get_host_cpu_name()} {features}"


def compile_function(
    function: Callable[..., Any], signature: Signature, *, reorder: bool
) -> ObjectCode:
    """Compile a Python function for this processor.

    Parameters
    ----------
    function : callable
    signature : Signature
    reorder : bool
        Whether sums may be added up in any order, and products fused into them.

    Raises
    ------
    numba.core.errors.NumbaError
        For what numba cannot compile.
    """
    import numba

    rules: dict[str, Any] = {
        "error_model": "numpy",
        "fastmath": {"reassoc", "contract"} if reorder else False,
    }
    # Put into the entry as it is, so that it is not compiled by itself as well.
    loops = numba.njit(function, inline="always", **rules)
    entry = numba.cfunc(_c_signature(signature), **rules)(_entry(loops, signature))
    # Of numba's wrapper for C only what it wraps is used: the wrapper prints errors, and for
    # that needs numba in memory.
    return _emit(entry.inspect_llvm(), entry.native_name.removeprefix("cfunc."))


def link(built: ObjectCode) -> tuple[int, object]:
    """Load object code.

    Returns
    -------
    int
        The address of its function.
    object
        What must live as long as that is used.

    Raises
    ------
    LookupError
        Where it uses something that is not there, such as a function that only numba brings.
    """
    import llvmlite.binding as llvm

    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target_machine())
    for name in built.outside:
        if llvm.address_of_symbol(name) is None:
            raise LookupError(f"{built.symbol} uses {name}, which is not there")
    engine.add_object_file(llvm.ObjectFileRef.from_data(built.code))
    engine.finalize_object()
    return engine.get_function_address(built.symbol), engine


def _c_signature(signature: Signature) -> Any:
    import numba

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
    import numba

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


def _emit(text: str, symbol: str) -> ObjectCode:
    """Object code for function `symbol` of a module in LLVM's assembly language."""
    import llvmlite.binding as llvm

    module = llvm.parse_assembly(text)
    functions = {function.name: function for function in module.functions}
    symbols = functions | {value.name: value for value in module.global_variables}
    names = [argument.name for argument in functions[symbol].arguments]
    if names[:2] != ["retptr", "excinfo"]:
        raise RuntimeError(f"this version of numba calls functions with {names}; use another one")
    used, outside = {symbol}, set[str]()
    waiting = [symbol]
    while waiting:
        for name in _names_in(str(symbols[waiting.pop()])) & symbols.keys() - used:
            used.add(name)
            if not symbols[name].is_declaration:
                waiting.append(name)
            elif not name.startswith("llvm."):
                # Others are instructions, no calls.
                outside.add(name)
    for name, function in functions.items():
        if name not in used and not function.is_declaration:
            function.linkage = "available_externally"
    code: bytes = _target_machine().emit_object(module)
    return ObjectCode(symbol, tuple(sorted(outside)), code)


def _names_in(text: str) -> set[str]:
    return {quoted or plain for quoted, plain in re.findall(r'@(?:"([^"]+)"|([\w.$-]+))', text)}


def _target_machine() -> Any:
    import llvmlite.binding as llvm

    with suppress(RuntimeError):
        # Needed by old versions, refused by new ones.
        llvm.initialize()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        jit=True,
    )
