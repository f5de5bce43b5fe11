"""The operators as plain torch, for programs that leave torch: other formats and runtimes know none of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OperatorBase, OpOverload

from . import reference
from .operators import EXTENSION

# names of operators, and of `reference`; `project_` stands in no exported program
PLAIN = ("project", "add_rms_norm_project", "add_layer_norm_project")


def decompositions() -> dict[OperatorBase, Callable[..., Any]]:
    """Return the operators of this package written in plain torch: a table for `ExportedProgram.run_decompositions`.

    A program that was exported from a model with erasers attached holds one operator a site, which only a process that
    has imported leace_fast can run. Decomposed by this table it holds torch's own operators alone: any process loads
    it, and `torch.onnx.export` takes it. Rows are computed in the same order, in the dtype of the factors; their last
    digits may differ from the kernels'. Where an index names an eraser that is not there the row comes out as NaN.
    Empty without the compiled kernels: then nothing but plain torch is exported in the first place.

    Source: https://docs.pytorch.org/docs/stable/export.html, ExportedProgram.run_decompositions.

    >>> import torch
    >>> from leace_fast import Eraser, Scrubber
    >>> model, x = torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.Linear(4, 2)), torch.randn(3, 4)
    >>> scrubber = Scrubber({"0": Eraser(torch.eye(4)[:, :1], torch.eye(4)[:1])})
    >>> with scrubber.attached(model, fuse=True), torch.no_grad():
    ...     program = torch.export.export(model, (x,)).run_decompositions(decompositions())
    ...     scrubber.verify(model, program.module(), x)
    >>> any("leace_fast" in str(node.target) for node in program.graph.nodes)
    False
    """
    if not EXTENSION.present:
        return {}
    namespace = torch.ops.leace_fast
    return {getattr(namespace, name).default: _plain(getattr(namespace, name).default, name) for name in PLAIN}


def _plain(operator: OpOverload, name: str) -> Callable[..., Any]:
    """Return `reference.name` with the arguments and the outputs of an operator."""
    names = [argument.name for argument in operator._schema.arguments]
    function = getattr(reference, name)

    def decomposed(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(names, args, strict=False)) | kwargs
        given.pop("packed", None)  # bytes for one kernel of one processor, which say what left and right say
        made = function(**given)
        if isinstance(made, Tensor):
            return made
        rows, summed = made
        return rows, given["x"].new_empty(0) if given["residual"] is None else summed

    return decomposed
