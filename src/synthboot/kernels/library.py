"""The compiled loops as one shared library, which is built with the package where a compiler is.

Without it everything runs, slower, to the same result: `available` says whether it is there, and
callers have a Python path. `SYNTHBOOT_KERNELS=0` leaves it aside.

It holds every loop once for each kind of processor, and those of the best kind that the machine has
are called. `SYNTHBOOT_KERNELS=avx2` or `baseline` takes a lesser one, to see what it costs.

Three kinds of argument go over: an int as int64_t, a float as double, an array as its address.
`array` is the one place where an array is checked to be what the loop takes it for; what an array
holds is for the loop to check.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
from collections.abc import Callable
from functools import cache
from multiprocessing import parent_process
from pathlib import Path
from typing import TYPE_CHECKING

from synthboot.errors import brief

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_log = logging.getLogger(__name__)

Address = ctypes.c_void_p | ctypes.Array[ctypes.c_int64] | None
"""None is a null pointer."""

Argument = int | float | Address
_Converted = ctypes.c_int64 | ctypes.c_double | Address

KINDS = ("baseline", "avx2", "avx512")
"""Of processors, each with all that the one before has."""
LOOPS = (
    "attend",
    "attention_weights",
    "containments",
    "draw",
    "rms_norm",
    "rms_norm_backward",
    "rotate",
    "silu_gate",
    "softmax_gradient",
    "upcast",
    "update_topk",
    "within_radius",
)
"""All that the headers have."""


@cache
def _library() -> ctypes.CDLL | None:
    """The shared library, or None where it was not built."""
    path = Path(__file__).parent / "_loops.abi3.so"
    try:
        # a CDLL, not a PyDLL: the interpreter's lock is released while a loop runs
        library = ctypes.CDLL(str(path))
        library.processor.restype = ctypes.c_char_p
        # one that was built before the sources were changed lacks some
        for loop in LOOPS:
            getattr(library, f"{loop}_{KINDS[0]}")
        return library
    except (OSError, AttributeError) as error:
        if parent_process() is None:  # once, not by every worker
            _log.warning(
                "synthboot was installed without its compiled loops (%s): "
                "pairing and sampling are slower",
                error,
            )
        return None


def available(device: str = "cpu") -> bool:
    """Whether the compiled loops were built, are not left aside, and are for this device."""
    if device != "cpu" or os.environ.get("SYNTHBOOT_KERNELS") == "0":
        return False
    return _library() is not None


def has_triton(device: str) -> bool:
    """Whether the loops of `kernels.gpu` are for this device, and run there.

    Triton comes with torch for CUDA, but wants a C compiler and Python's headers on the machine.
    """
    if device != "cuda" or os.environ.get("SYNTHBOOT_KERNELS") == "0":
        return False
    return triton_runs()


@cache
def triton_runs() -> bool:
    """Whether the loops of a GPU compile and run: tried once, by the smallest of them."""
    if importlib.util.find_spec("triton") is None:
        return False
    import torch

    try:
        from synthboot.kernels import gpu

        logits = torch.zeros(1, 2, device="cuda")
        target = torch.zeros(1, dtype=torch.int64, device="cuda")
        gpu.softmax_gradient(logits, target, 1.0, 0.0)
        return True
    except Exception as error:  # of the compiler, the driver or Triton itself
        if parent_process() is None:  # once, not by every worker
            _log.warning(
                "the loops of a GPU do not compile here (%s: %s): "
                "sampling and training are slower; Triton needs a C compiler and Python's headers",
                type(error).__name__,
                brief(error),
            )
        return False


def kind() -> str:
    """The kind of processor whose loops are called, one of `KINDS`."""
    best = _best_kind()
    asked = os.environ.get("SYNTHBOOT_KERNELS")
    if asked in KINDS and KINDS.index(asked) < KINDS.index(best):
        return asked
    return best


@cache
def _best_kind() -> str:
    library = _library()
    assert library is not None, "callers ask `available` first"
    name: bytes = library.processor()
    return name.decode()


def array(
    name: str,
    tensor: Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype,
) -> ctypes.c_void_p:
    """The address of a tensor that lies in one piece of memory.

    Raises ValueError where it has another shape or dtype than the loop takes it for.
    """
    if tensor.shape != shape or tensor.dtype is not dtype or not tensor.is_contiguous():
        raise ValueError(
            f"{name} is {tuple(tensor.shape)} {tensor.dtype}, expected {shape} {dtype} in one piece"
        )
    return ctypes.c_void_p(tensor.data_ptr())


def call(name: str, *arguments: Argument) -> bool:
    """Run a loop: False where it is one that refuses what an array holds, and did.

    Arrays have to live until it returns.
    """
    converted: list[_Converted] = []
    for argument in arguments:
        if isinstance(argument, int):
            converted.append(ctypes.c_int64(argument))  # a bare int would go over as 32 bits
        elif isinstance(argument, float):
            converted.append(ctypes.c_double(argument))
        else:
            converted.append(argument)
    return bool(_function(f"{name}_{kind()}")(*converted))


@cache
def _function(name: str) -> Callable[..., bool]:
    function = getattr(_library(), name)
    function.restype = ctypes.c_bool
    return function
