"""`fold_residual_`: one eraser for the whole residual stream, folded into the embedding and all that writes to it.

With `e(x) = P x + L R mu`, `P = I - L R` and `x = E + sum of W_i y_i`: `e(x) = (P E + L R mu) + sum of P W_i y_i`. So
the stream is erased at every position, between attention and MLP too, where no module could hold a hook.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..erasers import Eraser
from ..models import Inside
from ._agreement import attached_distance, check_agrees, example_of, hooked_output, output_of, share, warn_if_far
from ._calls import tensors_in
from ._edits import Edits, check_weight
from ._folding import FoldReport, check_not_folded, remember, undone_on_error
from ._plan import check_detached
from ._record import record_of_stream
from ._writers import Stream, Writer

STREAM = "residual stream"


def fold_residual_(
    model: nn.Module,
    eraser: Eraser,
    example: Mapping[str, Any] | Tensor | None = None,
    *,
    keep_originals: bool = True,
) -> FoldReport:
    """Fold one eraser, the same at every residual position, into the embeddings and all linear layers that write.

    No offset is lost and no layer needs a bias. A head that shares the embedding's weight gets its own. Every norm
    that reads the stream must see a sum of embeddings and outputs of linear layers: norms after attention or MLP,
    and experts, are refused.

    Args:
        model: changed in place; on any failure it is restored to the bit.
        eraser: for rows of the stream, of strength 1.
        example: a batch, as in `find_sites`; None for the model's own `dummy_inputs`.
        keep_originals: as in `fold_`.

    Returns:
        As `fold_`, the attached model being that of hooks on all that writes; `leak` is the largest share of what the
        eraser reads that is left at the input of a norm.

    Raises:
        ValueError: something else writes to the stream, or a writer is also read elsewhere; it is named.
        TypeError: the model is no module.
        RuntimeError: the folded model does not do what hooks on the writers do, or a norm still reads the concept.

    >>> block = nn.Sequential(nn.Embedding(8, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    >>> eraser = Eraser(torch.eye(4)[:, :1], torch.eye(4)[:1], torch.ones(4))
    >>> report = fold_residual_(block, eraser, torch.arange(8))
    >>> block[0].weight[:, 0].tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    inside = Inside(model)
    model = inside.model
    check_not_folded(model)
    check_detached(model)
    left, right = eraser.left.double(), eraser.right.double()
    if _excess(left, right) > 1e-3:
        raise ValueError("only an eraser of strength 1 gives the same at every position: R L must be the identity")
    example = example_of(model) if example is None else example
    stream = Stream(model, eraser.dim)
    stream.run(example)
    writers, offset = stream.writers()
    for writer in writers:
        check_weight(model, writer.parameter)
    linear, clean = Eraser(left, right), output_of(model, example)
    before = _norm_inputs(model, stream.norms, example)
    acts = {writer.module: eraser if writer == offset else linear for writer in writers}
    wanted = hooked_output(model, acts, example)
    edits, record = Edits(), record_of_stream(model, STREAM, eraser, (writer.module for writer in writers))
    with undone_on_error(model, edits):
        _untie(model, edits, stream.heads(writers))
        for writer in writers:
            _fold(model, edits, acts[writer.module], writer)
        dtypes = {model.get_parameter(writer.parameter).dtype for writer in writers}
        got = output_of(model, example)
        difference = check_agrees(dtypes, clean, wanted, got)
        distance = attached_distance(clean, wanted, got)
        leak = _check_erased(eraser, dtypes, before, _norm_inputs(model, stream.norms, example))
        warn_if_far(distance, (), "")
    return FoldReport(
        readers={STREAM: tuple(dict.fromkeys(inside.given(writer.module) for writer in writers))},
        cost_ratio={STREAM: 1.0},
        leak=leak,
        difference=difference,
        from_attached=distance,
        lost_offset=(),
        bytes_kept=remember(model, edits, keep_originals, record=record),
    )


def _fold(model: nn.Module, edits: Edits, eraser: Eraser, writer: Writer) -> None:
    """Apply the eraser to all that the weight can write."""
    weight = model.get_parameter(writer.parameter).detach().double()
    rows = weight if writer.axis == -1 else weight.mT
    rows = eraser.to(weight.device, torch.float64)(rows)
    edits.write(model, writer.parameter, (rows if writer.axis == -1 else rows.mT).to(torch.float64))
    bias = None if writer.is_table else getattr(model.get_submodule(writer.module), "bias", None)
    if bias is not None:
        edits.write(model, f"{writer.module}.bias", eraser.to(bias.device, torch.float64)(bias.detach().double()))


def _excess(left: Tensor, right: Tensor) -> float:
    """How far R L is from the identity."""
    product = right @ left
    return float((product - torch.eye(len(product)).to(product)).norm())


def _untie(model: nn.Module, edits: Edits, heads: Iterable[tuple[str, str]]) -> None:
    for name, table in heads:
        edits.untie(model, name, table)
        config = getattr(model, "config", None)
        for owner in (config, config.get_text_config()) if config is not None else ():
            if getattr(owner, "tie_word_embeddings", False):
                edits.set_flag(owner, "tie_word_embeddings", False)


def _norm_inputs(model: nn.Module, norms: Iterable[str], example: Any) -> dict[str, Tensor]:
    """The rows that each norm reads."""
    rows: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, args, kwargs: rows.update({name: tensors_in((args, kwargs))[0].detach().double()})

    handles = [model.get_submodule(name).register_forward_pre_hook(keep(name), with_kwargs=True) for name in norms]
    try:
        output_of(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return rows


def _check_erased(
    eraser: Eraser, dtypes: Iterable[torch.dtype], before: dict[str, Tensor], after: dict[str, Tensor]
) -> float:
    """Return the largest share of what the eraser reads that is left; RuntimeError beyond what rounding explains."""
    digits = max(math.sqrt(torch.finfo(dtype).eps) for dtype in dtypes)
    shares = []
    for name, rows in before.items():
        right = eraser.right.to(rows)
        mean = torch.zeros(eraser.dim).to(rows) if eraser.mean is None else eraser.mean.to(rows)
        was, now = (rows - mean) @ right.mT, (after[name] - mean) @ right.mT
        rounding = (rows.abs() + mean.abs()) @ right.abs().mT
        shares.append(share(now, was))
        if not float(now.norm()) <= digits * float(rounding.norm()):
            raise RuntimeError(
                f"{name!r} would still read {shares[-1]:.1e} of what the eraser removes: something writes to the "
                "residual stream unseen; nothing was changed"
            )
    return max(shares)
