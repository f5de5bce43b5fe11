"""Whether the rows of a site stand at their tokens, told by a pass in which one token of each sequence is changed.

A model that flips, rolls, sorts or gathers its tokens before a site gives rows of the right shape, whose labels are
those of other tokens. A token that is changed changes its own row most; where each of several changes another row far
more than its own, and none the row of another one, the rows stand in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._modules import with_hooks
from ._sequences import Example, leading_of, picked

OWN = 1 / 3  # of the change of the row that changes most, on average: of rows in order 0.37 was the least that was seen
OTHERS = 0.5  # the same of the second row: where tokens are mixed evenly, any row may change most
NOTHING = 0.01  # of the largest change by any of the tokens: no row moves with a token that was shifted out
STEP = 0.001  # of the way from a token to another: small, so that what sorts them by what they hold sorts them alike
ROUNDED = 0.05  # the same in 16 bits, where less would be lost
MASK = "attention_mask"


def check_order(
    model: nn.Module,
    example: Example,
    main: str | None,
    sites: Iterable[str],
    run: Callable[[Example], Mapping[str, Tensor] | None],
) -> None:
    """Raise ValueError for a site whose rows stand in another order than the tokens of the inputs.

    A row that no token moves alone, as where tokens are mixed evenly, is no sign of an order, and a shift, which leaves
    out a token, is none either: nothing is refused then, nor where no token changes a row before its own.

    Args:
        model: of the sites.
        example: a batch, as in `find_sites`.
        main: name of the input that holds the tokens.
        sites: names of modules that have one row a token.
        run: gives what these return for an example, (batch, ..., width); None where it fails.

    >>> class Turned(nn.Module):
    ...     def forward(self, x):
    ...         return x.flip(1)
    >>> model, x = Turned(), torch.eye(4).expand(2, 4, 4)
    >>> check_order(model, x, None, ["layer"], lambda x: {"layer": model(x)})
    Traceback (most recent call last):
        ...
    ValueError: 'layer' gives rows in another order than the tokens: ...
    """
    name, tokens = _tokens(example, main)
    places = [] if tokens is None else _places(example, tokens)
    if tokens is None or len(places) < 2:
        return
    copies: Any = picked(example, [0] * (len(places) + 1), name)
    same = copies if name is None else copies[name]
    nudge = Nudge(same, places)

    def passed(x: Tensor) -> Mapping[str, Tensor] | None:
        return run(x if name is None else {**copies, name: x})

    if tokens.is_floating_point():
        outputs = passed(nudge.moved(same, places))
    else:
        with with_hooks((each, nudge) for each in model.modules() if isinstance(each, nn.Embedding)):
            outputs = passed(same)
        if outputs is not None and not nudge.met:  # the model looks its tokens up otherwise
            other = _replaced(same, places, tokens)
            outputs = None if other is None else passed(other)
    if outputs is None:
        return
    for site in sites:
        x = outputs[site]
        if x[..., 0].numel() != same.shape[0] * same.shape[1]:
            continue
        x = x.reshape(*same.shape[:2], -1)
        rows = _rows((x[1:] - x[:1]).nan_to_num().norm(dim=-1), places)
        if rows is not None:
            raise ValueError(
                f"{site!r} gives rows in another order than the tokens: those of tokens {_listed(places)} are "
                f"{_listed(rows)}; expected the row of each token at its place, where its label is; choose other "
                "sites, or give one label a sequence"
            )


class Nudge:
    """A hook of embeddings that moves what is looked up for one token, another one in each sequence but the first.

    Args:
        tokens: integers (1 + the number of places, length), the same sequence again and again.
        places: of the tokens.
    """

    def __init__(self, tokens: Tensor, places: Sequence[int]) -> None:
        self.tokens, self.places = tokens, places
        self.met = False  # whether tokens were looked up

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        ids = args[0] if args else None
        if not isinstance(ids, Tensor) or ids.shape != self.tokens.shape:
            return None
        order = ids[0].argsort(stable=True)
        known = self.tokens[0].to(order.device).argsort(stable=True)
        if not torch.equal(ids[0][order], self.tokens[0].to(ids)[known]):
            return None
        self.met = True
        return self.moved(output, order[known.argsort()][list(self.places)].tolist())

    def moved(self, x: Tensor, places: Sequence[int]) -> Tensor:
        """Rows (sequences, length, width) of which the i-th sequence but one has the row at the i-th place moved."""
        x, step = x.clone(), STEP if x.element_size() > 2 else ROUNDED
        for i, place in enumerate(places):
            x[i + 1, place] += step * (x[0].roll(1, -1) - x[0])[place]
        return x


def _tokens(example: Example, main: str | None) -> tuple[str | None, Tensor | None]:
    """The input that holds the tokens, by name: integers (batch, length), or (batch, length, width)."""
    name, found = None, None
    if isinstance(example, Tensor):
        found = example
    elif leading_of(example, main) is not None:
        tensors = {key: each for key, each in example.items() if isinstance(each, Tensor) and each.ndim > 1}
        named = [key for key in (main, "input_ids", "inputs_embeds", *tensors) if key in tensors and key != MASK]
        name = next(iter(named), None)
        found = None if name is None else tensors[name]
    if found is None or not len(found):
        return name, None
    fits = found.ndim == 3 if found.is_floating_point() else found.ndim == 2 and found.dtype != torch.bool
    return name, found if fits else None


def _places(example: Example, tokens: Tensor) -> list[int]:
    """The first and the last token of the first sequence that are no padding, and two between."""
    mask = None if isinstance(example, Tensor) else example.get(MASK)
    kept = torch.arange(tokens.shape[1])
    if isinstance(mask, Tensor) and mask.shape == tokens.shape[:2]:
        kept = mask[0].cpu().nonzero()[:, 0]
    count = len(kept)
    third = (count + 1) // 3
    return [int(kept[i]) for i in sorted({0, third, 2 * third, count - 1}) if i < count]


def _replaced(copies: Tensor, places: Sequence[int], tokens: Tensor) -> Tensor | None:
    """Copies of a sequence with another token at one place each, of a number that is near; None where all are one."""
    copies, known = copies.clone(), tokens.unique()
    for i, place in enumerate(places):
        others = known[known != copies[0, place]]
        if not len(others):
            return None
        copies[i + 1, place] = others[(others - copies[0, place]).abs().argmin()]
    return copies


def _rows(changes: Tensor, places: Sequence[int]) -> list[int] | None:
    """The rows that move with the tokens at some places; None where these are no others, or it cannot be told.

    Args:
        changes: of each row (tokens, length) by each of the tokens.
        places: of these.
    """
    changes = changes.cpu()
    two = changes.topk(2, dim=-1).values
    most, unclear = two[:, 0], two[:, 1] / two[:, 0]
    if not bool((most > NOTHING * changes.max()).all()) or not float(unclear.mean()) < OTHERS:
        return None
    if not any(bool((c[:place] > NOTHING * top).any()) for c, place, top in zip(changes, places, most, strict=True)):
        return None  # no token changes a row before its own: a causal model, in order
    rows, free = list(places), changes.clone()
    for i in unclear.argsort().tolist():  # where two tokens change a row most, it is that of the clearer one
        rows[i] = int(free[i].argmax())
        free[:, rows[i]] = -1
    away = torch.tensor([row != place for row, place in zip(rows, places, strict=True)])
    own = (changes[range(len(rows)), list(places)] / most)[away]
    return rows if len(own) > 1 and float(own.mean()) < OWN else None


def _listed(numbers: Sequence[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
