"""What tells one value from another, across processes: a digest of numbers, structures, and functions by their code."""

from __future__ import annotations

import dis
import functools
import hashlib
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, range, slice, type(...))
NAME = "checkpoint_name"  # the attribute by which a caller names a callable
PIECE = 2**26  # bytes that are brought to the host at a time
INSTALLED = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def told_apart(value: Any, what: str) -> str:
    """A digest that is the same for equal values in another process, and another for other values.

    Functions are told by their code, defaults, closures and the globals that they read; what is installed, by its code
    alone. A callable with an attribute `checkpoint_name` is told by that.

    Args:
        value: tensors, arrays, plain values, structures of these, functions, and objects that can be pickled.
        what: names it in errors.

    Raises:
        ValueError: part of it cannot be told from others, such as a lock, an open file or a generator.
    """
    return _Digest(what).add(value).hexdigest()


class _Digest:
    def __init__(self, what: str) -> None:
        self.what = what
        self.sha = hashlib.sha256()
        self.around: list[int] = []  # ids of the values that this one lies in
        self.code: dict[int, int] = {}  # by id of functions and classes: when each was met first

    def hexdigest(self) -> str:
        return self.sha.hexdigest()

    def add(self, value: Any) -> _Digest:
        try:
            self._add(value)
        except RecursionError:
            raise ValueError(f"{self.what} cannot be told from others: it is too deep") from None
        return self

    def _text(self, *parts: object) -> None:
        for part in parts:
            data = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")
            self.sha.update(len(data).to_bytes(8, "little") + data)

    def _each(self, values: Any) -> None:
        for value in values:
            self._add(value)

    def _add(self, value: Any) -> None:
        if isinstance(value, PLAIN):
            return self._text(type(value).__name__, value if isinstance(value, bytes) else repr(value))
        if isinstance(value, types.ModuleType):
            return self._text("module", value.__name__)
        if id(value) in self.around or id(value) in self.code:
            place = self.code.get(id(value)) or self.around.index(id(value))
            return self._text("met before", place)
        if isinstance(value, (types.FunctionType, type)):
            self.code[id(value)] = len(self.code) + 1
        self.around.append(id(value))
        self._structure(value)
        self.around.pop()
        return None

    def _structure(self, value: Any) -> None:
        if isinstance(getattr(value, NAME, None), str) and callable(value):
            return self._text("named", getattr(value, NAME))
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, (np.ndarray, np.generic)):
            return self._array(np.asarray(value))
        if isinstance(value, (list, tuple)):
            self._text(type(value).__name__, len(value))
            return self._each(value)
        if isinstance(value, (set, frozenset)):
            return self._text("set", *sorted(told_apart(each, self.what) for each in value))
        if isinstance(value, Mapping):
            pairs = sorted((told_apart(key, self.what), key) for key in value) if value else []
            self._text("mapping", len(pairs))
            for digest, key in pairs:
                self._text(digest)
                self._add(value[key])
            return None
        return self._code(value)

    # ---------------------------------------------------------------- numbers

    def _tensor(self, value: Tensor) -> None:
        for part in parts_of(value, self.what):
            if isinstance(part, Tensor):
                self._text(part.dtype, tuple(part.shape))
                for piece in _pieces(part):
                    self.sha.update(piece)
            else:
                self._add(part)

    def _array(self, value: np.ndarray) -> None:
        self._text("array", value.dtype.descr, value.shape)
        if value.dtype.hasobject:
            return self._each(value.ravel().tolist())
        self.sha.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        return None

    # ------------------------------------------------------------------- code

    def _code(self, value: Any) -> None:
        if isinstance(value, types.CodeType):
            names = (value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars)
            counts = (value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount, value.co_flags)
            self._text("code", value.co_code, names, counts)
            return self._each(value.co_consts)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            self._text("method")
            return self._each((value.__func__, value.__self__))
        if isinstance(value, functools.partial):
            self._text("partial")
            return self._each((value.func, value.args, value.keywords))
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)):
            owner = getattr(value, "__self__", None)
            self._text("builtin", value.__qualname__, getattr(value, "__module__", None))
            return None if owner is None else self._add(owner)
        if isinstance(value, (staticmethod, classmethod)):
            return self._add(value.__func__)
        if isinstance(value, property):
            return self._each((value.fget, value.fset))
        if (wrapped := getattr(value, "__wrapped__", None)) is not None:  # as by functools.cache
            self._text("wrapper", type(value).__qualname__)
            return self._add(wrapped)
        return self._object(value)

    def _function(self, value: types.FunctionType) -> None:
        self._text("function", value.__module__, value.__qualname__)
        if _is_own(value.__module__):  # told by the version of the package
            return None
        self._each((value.__code__, value.__defaults__, value.__kwdefaults__))
        cells = dict(zip(value.__code__.co_freevars, value.__closure__ or (), strict=True))
        for name, cell in cells.items():
            self._text(name)
            try:
                self._add(cell.cell_contents)
            except ValueError as error:
                if "Cell is empty" not in str(error):
                    raise
        if not _is_installed(value.__module__):
            for name in sorted(set(_globals_of(value.__code__)) & set(value.__globals__)):
                self._text(name)
                self._add(value.__globals__[name])
            self._add(value.__dict__)
        return None

    def _class(self, value: type) -> None:
        self._text("class", value.__module__, value.__qualname__)
        if _is_own(value.__module__) or _is_installed(value.__module__):
            return
        self._each(value.__bases__)
        for name, part in sorted(vars(value).items()):
            special = name.startswith("__") and name.endswith("__")
            if (
                callable(part)
                if special
                else not isinstance(part, (types.GetSetDescriptorType, types.MemberDescriptorType))
            ):
                self._text(name)
                self._add(part)

    def _object(self, value: Any) -> None:
        """Tell an object by what pickle would keep of it."""
        try:
            made = value.__reduce_ex__(4)
        except Exception as error:  # noqa: BLE001  (whatever a class raises there, it cannot be told)
            raise ValueError(self._untold(value, error)) from error
        self._text("object")
        if isinstance(made, str):
            return self._text(type(value).__module__, type(value).__qualname__, made)
        maker, arguments, *rest = made
        state, items, pairs = [*rest, None, None, None][:3]
        self._add(type(value))
        return self._each((maker, arguments, state, list(items or ()), list(pairs or ())))

    def _untold(self, value: Any, why: object) -> str:
        return (
            f"{self.what} holds a {type(value).__name__} that cannot be told from others ({why}), so that a checkpoint "
            f'would not know its call again: leave it out, or name the callable, method.{NAME} = "a name that you '
            'change with it"'
        )


def parts_of(tensor: Tensor, what: str) -> Iterator[Any]:
    """What a tensor is made of: dense tensors in memory, and plain values.

    Raises:
        ValueError: its numbers are not in memory, or cannot be read.
    """
    tensor = tensor.detach()
    if hasattr(tensor, "__tensor_flatten__"):  # DTensor, quantised weights and other wrappers
        names, context = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
        yield (type(tensor).__qualname__, tuple(tensor.shape))
        yield str(getattr(tensor, "placements", None) or context)
        for name in names:
            part = getattr(tensor, name)
            yield from parts_of(part, what) if isinstance(part, Tensor) else (str(part),)
    elif tensor.is_meta:
        raise ValueError(
            f"the numbers of {what} are not in memory, so that a checkpoint would not know them again: load the "
            "weights, or leave out checkpoint="
        )
    elif tensor.is_quantized:
        yield str(tensor.qscheme())
        by_channel = "channel" in str(tensor.qscheme())
        yield from (
            (tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points(), tensor.q_per_channel_axis())
            if by_channel
            else (tensor.q_scale(), tensor.q_zero_point())
        )
        yield tensor.int_repr()
    elif tensor.layout == torch.sparse_coo:
        whole = tensor.coalesce()
        yield from (tuple(tensor.shape), whole.indices(), whole.values())
    elif tensor.layout != torch.strided:
        yield from (str(tensor.layout), tensor.to_dense())
    else:
        yield tensor.resolve_conj().resolve_neg()
    if type(tensor) not in (Tensor, nn.Parameter) and (more := dict(vars(tensor))):
        yield more  # such as the scales of quantised weights


def _pieces(tensor: Tensor) -> Iterator[memoryview]:
    """The bytes of a dense tensor, some at a time: views where it lies densely in the host's memory."""
    flat = tensor.contiguous().reshape(-1)
    step = max(1, PIECE // tensor.element_size())
    for begin in range(0, flat.numel(), step):
        yield flat[begin : begin + step].cpu().view(torch.uint8).numpy().data


def _globals_of(code: types.CodeType) -> Iterator[str]:
    """The names of globals that code reads, also in functions inside."""
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield str(step.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _globals_of(constant)


def _is_own(module: str | None) -> bool:
    return (module or "").partition(".")[0] == __name__.partition(".")[0]


def _is_installed(module: str | None) -> bool:
    """Whether a module is built in or lies in an environment's folders: not code that is written meanwhile."""
    found = sys.modules.get(module or "")
    path = getattr(found, "__file__", None)
    return path.startswith(INSTALLED) if path else module in sys.builtin_module_names
