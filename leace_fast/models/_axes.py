"""Which axis of a site's output holds what, told by passes on other sequences, and on shorter ones.

Shapes alone do not tell (batch, length, width) from (length, batch, width) where batch equals length, nor a width from
a length. What changes with the number of sequences is the batch; what changes with their length is no width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ._batch_labels import decoder_sites
from ._modules import eagerly, hidden_of, is_hidden, run_example, submodules, with_hooks
from ._order import check_order
from ._sequences import SEQUENCES, Example, first_sequences, leading_of, picked, shortened

COLUMNS = 16  # of each output that are compared: all of them, of all sites, would take memory that grows with depth
OTHER = 0.1  # an order of the rows is the right one if its distance is below this part of that of another
SAME = 1e-3  # of the size of the rows: sums over other shapes round otherwise
MORE = (1, 0, 1)  # which of the first sequences are run a second time, as more of them


@dataclass(frozen=True)
class _Output:
    """What a site gave in one pass: the shape, and some columns (..., at most `COLUMNS`) in float32 on the CPU."""

    shape: tuple[int, ...]
    some: Tensor


Outputs = dict[str, _Output]


def check_axes(model: nn.Module, example: Example, sites: Iterable[str], by_token: bool = False) -> None:
    """Raise ValueError for a site whose rows are not (batch, ..., width) in the order of the sequences and tokens.

    Where a model takes neither fewer sequences nor shorter ones, or the example cannot be cut, nothing is refused.

    Args:
        model: any module; it is run a few times on two or three sequences.
        example: a batch, as in `find_sites`.
        sites: names of modules.
        by_token: whether each token has a label, so that the rows must follow the length of the sequences.

    >>> check_axes(nn.Sequential(nn.Linear(4, 4)), torch.ones(2, 6, 4), ["0"])
    """
    name = getattr(model, "main_input_name", None)
    main, few = leading_of(example, name), first_sequences(example, name)
    if main is None or not len(main):
        return
    few, sites = example if few is None else few, list(sites)
    with eagerly():
        whole = _outputs(model, few, sites)
        if whole is None:
            return
        cuts = [cut for axis in range(1, main.ndim) if (cut := shortened(few, main, axis)) is not None]
        short = [(cut, outputs) for cut in cuts if (outputs := _outputs(model, cut, sites))]
        decoder = decoder_sites(model, sites)
        for site in sites:
            others = [outputs[site].shape for _, outputs in short]
            _check_width(site, whole[site].shape, others)
            if by_token and site not in decoder:
                _check_tokens(site, whole[site].shape, others)
        # one place a sequence would look the same, whether the sequences take turns or not
        enough = [each for each in short if main.shape[1] > 3] or [(few, whole)]
        _check_batch(model, *enough[0], min(len(main), SEQUENCES))
        if by_token:
            ordered = [site for site in sites if site not in decoder]
            check_order(model, few, name, ordered, lambda copies: _some(_outputs(model, copies, ordered)))


def _outputs(model: nn.Module, example: Example, sites: Iterable[str]) -> Outputs | None:
    """What the sites give for an example; None where it fails, or not every site gives rows."""
    found: Outputs = {}

    def keep(site: str) -> Callable[..., None]:
        def kept(module: nn.Module, args: Any, output: Any) -> None:
            hidden = hidden_of(output)
            if is_hidden(hidden):
                step = -(-hidden.shape[-1] // COLUMNS) or 1
                found[site] = _Output(tuple(hidden.shape), hidden.detach()[..., ::step].float().cpu().clone())

        return kept

    modules = submodules(model, sites)
    hooks = ((module, keep(site)) for site, module in modules.items())
    try:
        with with_hooks(hooks), torch.random.fork_rng(range(torch.cuda.device_count())):
            torch.manual_seed(0)  # some models draw at random in evaluation mode too
            run_example(model, example)
    except Exception:  # whatever a model refuses of fewer sequences or shorter ones, it may take of all
        return None
    return found if len(found) == len(modules) else None


def _some(outputs: Outputs | None) -> dict[str, Tensor] | None:
    return None if outputs is None else {site: output.some for site, output in outputs.items()}


def _check_width(site: str, shape: tuple[int, ...], shorter: Iterable[tuple[int, ...]]) -> None:
    """Raise ValueError where the last axis of an output changes with the length of the inputs."""
    for other in shorter:
        if other[-1:] != shape[-1:]:
            raise ValueError(
                f"{site!r} gives {shape}, and {other} where the inputs are shorter: its last axis is time or space, "
                "expected (batch, ..., width); choose a site behind the transposition"
            )


def _check_tokens(site: str, shape: tuple[int, ...], shorter: list[tuple[int, ...]]) -> None:
    """Raise ValueError where there are as many rows whatever the length."""
    if shorter and all(other == shape for other in shorter):
        raise ValueError(
            f"{site!r} gives {shape}, and the same shape where the inputs are shorter: its rows are not the tokens, "
            "which have the labels; choose another site, or give one label a sequence"
        )


def _check_batch(model: nn.Module, few: Example, base: Outputs, count: int) -> None:
    """Raise ValueError where the sequences do not come one after another in the first axis of each output."""
    places = [*MORE] if count > 1 else [0, 0]
    more = _outputs(model, picked(few, places), base)
    if more is None:
        return
    mixed = {}
    for site, one in base.items():
        two, grown = more[site], len(places)
        if one.shape[1:] != two.shape[1:] or one.shape[0] * grown != two.shape[0] * count:
            raise _refusal(site, f"gives {one.shape} for {count} and {two.shape} for {grown} sequences")
        by_sequence = _distance(one, two, places, count)
        if by_sequence <= SAME:
            continue
        mixed[site] = by_sequence
        if one.shape[0] > count and _distance(one, two, places, count, by_turns=True) < OTHER * by_sequence:
            raise _refusal(site, f"gives {one.shape}, in which the sequences take turns")
    if mixed:  # the sequences may lie in another axis of the inputs, or influence each other
        _check_inputs(model, few, base, mixed)


def _check_inputs(model: nn.Module, few: Example, base: Outputs, mixed: dict[str, float]) -> None:
    """Raise ValueError where it is the second axis of the inputs along which nothing depends on what else is there."""
    turned = picked(few, [0, 0], axis=1)
    other = _outputs(model, turned, mixed)
    if other is None:
        return
    for site, by_sequence in mixed.items():
        one, two = base[site].some, other[site].some
        fits = one.ndim > 2 and two.shape[:2] == (len(one), 2)
        if fits and _apart(two, one[:, :1].expand_as(two)) < OTHER * by_sequence:
            raise _refusal(site, f"gives {base[site].shape}, where the first axis mixes and the second does not")


def _refusal(site: str, what: str) -> ValueError:
    return ValueError(
        f"{site!r} {what}: expected (batch, ..., width), the sequences one after another in the first axis, as of a "
        "model with batch_first=True; choose other sites, or wrap the model so that it takes and gives them so"
    )


def _distance(one: _Output, two: _Output, places: Sequence[int], count: int, by_turns: bool = False) -> float:
    """How far the sequences of one output are from the same ones in another, read one after another or by turns."""
    width = one.some.shape[-1]
    if by_turns:
        few, more = (x.some.reshape(-1, n, width).transpose(0, 1) for x, n in ((one, count), (two, len(places))))
    else:
        few, more = (x.some.reshape(n, -1, width) for x, n in ((one, count), (two, len(places))))
    return _apart(more, few[torch.tensor(places)])


def _apart(x: Tensor, wanted: Tensor) -> float:
    """The distance of two outputs over the size of one."""
    size = float(wanted.norm())
    return float((x - wanted).nan_to_num().norm()) / size if size else 0.0
