"""What one tensor operation did with rows and weights: by the memory that its operands and its outputs lie in."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..models import address_of

# operands of products, and the axes that they sum over
PRODUCTS = {"mm": (0, 1, -1, -2), "addmm": (1, 2, -1, -2), "bmm": (0, 1, -1, -2), "baddbmm": (1, 2, -1, -2)}
PRODUCTS |= {"linear": (0, 1, -1, -1), "mv": (0, 1, -1, -1), "addmv": (1, 2, -1, -1), "matmul": (0, 1, -1, -2)}
# new tensors that hold whole rows of the old one, once or more often, maybe in another dtype
COPIES = {"clone", "_to_copy", "index", "index_select", "cat", "stack", "repeat", "contiguous", "expand_copy"}
NO_VALUES = {"zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "new_zeros", "new_ones", "new_empty"}
NO_VALUES |= {"new_full", "new_empty_strided", "sym_size", "sym_stride", "sym_numel", "is_same_size"}


class Call:
    """One operation that ran.

    Attributes:
        name: of the operation, without its overload.
        inputs, outputs: all tensors in its arguments and in what it returned.
    """

    def __init__(self, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        self.func, self.args, self.kwargs = func, args, kwargs
        self.name: str = func.overloadpacket.__name__
        self.inputs, self.outputs = tensors_in((args, kwargs)), tensors_in(output)

    @property
    def reads_no_values(self) -> bool:
        """Whether it gives out a view of its operands, or nothing of their values."""
        if self.name in NO_VALUES:
            return True
        if not self.outputs or self.func._schema.is_mutable:
            return False
        if any(tensor.numel() and memory_of(tensor) < 0 for tensor in self.outputs):
            return False  # what has no memory of its own may hold anything
        return {memory_of(tensor) for tensor in self.outputs} <= {memory_of(tensor) for tensor in self.inputs}

    @property
    def copies_rows(self) -> bool:
        """Whether it copies, and not along the last axis, where it may put the columns into another order."""
        if self.name == "index":
            picked = self.args[1]
            return len(picked) != self.args[0].ndim or picked[-1] is None
        if self.name == "index_select":
            return self.args[1] % self.args[0].ndim != self.args[0].ndim - 1
        return self.name in COPIES


def whole_rows(tensor: Tensor, axis: int, width: int) -> bool:
    """Whether a view cuts its memory into whole rows of a width that run along an axis."""
    if tensor.ndim < -axis or tensor.shape[axis] != width or (width > 1 and tensor.stride(axis) != 1):
        return False
    others = [i for i in range(tensor.ndim) if i != tensor.ndim + axis and tensor.shape[i] > 1]
    return tensor.storage_offset() % width == 0 and all(tensor.stride(i) % width == 0 for i in others)


def memory_of(tensor: Any) -> int:
    """What tensors that share their memory have in common; -1 for what has none."""
    if not isinstance(tensor, Tensor) or tensor.is_meta or not tensor.numel():
        return -1
    return address_of(tensor) or -1


def tensors_in(values: Any) -> list[Tensor]:
    """All tensors in nested values."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
