"""Triton's interpreter, mended where it differs from a GPU: a plugin of pytest that comes before the kernels."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from unittest.mock import patch

os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated

from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

convert = interpreter._convert_float


def as_float32(bits: np.ndarray) -> np.ndarray:
    """Return the numbers that bits of bfloat16 stand for."""
    return (bits.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _convert(data: np.ndarray, source: Any, goal: Any, rounding: Any) -> np.ndarray:
    """Round to the nearest bfloat16, as a GPU does: the interpreter truncates."""
    if (source, goal) == (tl.float32, tl.bfloat16):
        flat = torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32))
        return flat.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    if (source, goal) == (tl.bfloat16, tl.float32):
        return as_float32(np.ascontiguousarray(data)).view(np.uint32)
    return convert(data, source, goal, rounding)


def _dot(self: Any, a: Any, b: Any, d: Any, *_: Any) -> Any:
    """Multiply numbers: the interpreter multiplies the bits of bfloat16."""
    left, right = (as_float32(x.data) if x.dtype.scalar == tl.bfloat16 else x.data for x in (a, b))
    return interpreter.TensorHandle(left.astype(np.float32) @ right.astype(np.float32) + d.data, d.dtype.scalar)


@functools.cache
def patched(function: Any) -> None:
    """Put the interpreter's operations in the place of the language's, as far as a function on the device sees it.

    A launch does so for its kernel, and takes it back at its end; what functions add to that stays for good, yet the
    interpreter would do it again at each of their calls, for a third of its time.
    """
    interpreter._patch_lang(function)


def _call(self: Any, *arguments: Any, **named: Any) -> Any:
    """Call a function on the device."""
    patched(self.fn)
    try:
        return self.rewrite()(*arguments, **named)
    except Exception as error:
        raise interpreter.InterpreterError(repr(error)) from error


interpreter.InterpretedFunction.__call__ = _call  # type: ignore[method-assign]
interpreter._convert_float = _convert
interpreter.InterpreterBuilder.create_dot = _dot  # type: ignore[method-assign]


@pytest.fixture(autouse=True)
def wide_search(request: pytest.FixtureRequest) -> Iterator[None]:
    """Search for medians in a program a tile, where all kernels run: the interpreter's time is that of its programs.

    With the 16 columns of a GPU it is two thirds of all; single kernels are launched with these.
    """
    if "kernels_on_the_cpu" not in request.fixturenames:
        yield
        return
    from leace_fast.triton_kernels import block

    with patch.object(block, "LOCATE_COLUMNS", 128):
        yield
