"""LLVM's text comes in and object code goes out; object code comes in and an address goes out.

llvmlite is what numba itself compiles and links with; it is imported where it is used only.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

_IN_PLACE = "llvm."
"""Functions of these names are instructions, no calls."""


@dataclass(frozen=True)
class ObjectCode:
    """Machine code in the system's object format, with the functions that it may call.

    `symbol` is the function to run; `outside` names those that are not in `code`.
    """

    symbol: str
    outside: tuple[str, ...]
    code: bytes


def processor() -> str:
    """The name and all features of this processor: code for another one may not run here."""
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features().flatten()
    return f"{sys.platform} {llvm.get_process_triple()} {llvm.get_host_cpu_name()} {features}"


def emit(text: str, symbol: str) -> ObjectCode:
    """Object code for this processor from LLVM's assembly language."""
    import llvmlite.binding as llvm

    module = llvm.parse_assembly(text)
    outside = [function.name for function in module.functions if function.is_declaration]
    outside += [value.name for value in module.global_variables if value.is_declaration]
    code: bytes = _target_machine().emit_object(module)
    return ObjectCode(
        symbol, tuple(name for name in outside if not name.startswith(_IN_PLACE)), code
    )


def link(built: ObjectCode) -> tuple[int, object]:
    """The address of `built.symbol`, and what must live as long as it is used.

    numba's wrapper ends in helpers of numba's for errors and allocations. Kernels raise none and
    allocate nothing, so where numba is not loaded `abort` stands for them.
    """
    import llvmlite.binding as llvm

    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target_machine())
    library = ctypes.cdll.msvcrt if sys.platform == "win32" else ctypes.CDLL(None)
    abort = ctypes.cast(library.abort, ctypes.c_void_p).value
    for name in built.outside:
        if llvm.address_of_symbol(name) is None:
            llvm.add_symbol(name, abort)
    engine.add_object_file(llvm.ObjectFileRef.from_data(built.code))
    engine.finalize_object()
    return engine.get_function_address(built.symbol), engine


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
