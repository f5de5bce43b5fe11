"""Erasers on the norms of a served model, and the rows of a batch that tell which one each token meets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .._ops import load_extension
from ..erasers import Eraser, EraserTable
from ..models import is_norm

MOST_GPU_RANK = 64  # above it the kernels for CUDA take no eraser


class SiteEraser:
    """The hook of one norm: rows of its output are erased, each by the eraser that `rows` names.

    Args:
        site: its name.
        table: of the site, with one eraser for each choice.
        rows: (tokens,) int64, of all sites of the model; its memory stays.
    """

    def __init__(self, site: str, table: EraserTable, rows: Tensor) -> None:
        self.site, self.table, self.rows = site, table, rows

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        # a norm that adds the residual first returns what it normed, and the sum
        normed = output[0] if isinstance(output, tuple) else output
        if normed.ndim == 2:
            erased = self.table(normed, self.rows[: normed.shape[0]])
        elif normed.ndim == 3 and normed.shape[0] == 1:  # as models of transformers have it that vLLM runs itself
            erased = self.table(normed, self.rows[: normed.shape[1]][None])
        else:
            raise ValueError(f"{self.site!r} gave rows of shape {tuple(normed.shape)}, expected (tokens, width)")
        return (erased, *output[1:]) if isinstance(output, tuple) else erased


class Placed:
    """Erasers on all their sites of one model.

    Args:
        model: that is served, with its weights.
        choices: for each row of the tables, the erasers by site; all have the same sites.
        tokens: most tokens of a batch.
        default: the row of tokens that no request owns, -1 for none.
        served_name: what the model calls a site, where it has names of its own.

    Raises:
        ValueError: a site is missing, is no norm, has another width, or its erasers cannot run where it is.
    """

    def __init__(
        self,
        model: nn.Module,
        choices: Sequence[Mapping[str, Eraser]],
        tokens: int,
        default: int,
        served_name: Callable[[str], str] = str,
    ) -> None:
        self.sites = sorted(set().union(*choices))
        modules = {site: _norm_at(model, site, served_name(site), choices) for site in self.sites}
        device = next(iter(modules.values())).weight.device
        self.default = default
        self.rows = torch.full((tokens,), default, dtype=torch.int64, device=device)
        self.hooks: dict[str, SiteEraser] = {}
        for site, module in modules.items():
            erasers = [each[site] if site in each else _nothing(choices, site) for each in choices]
            table = EraserTable(
                erasers, device, torch.float64 if module.weight.dtype == torch.float64 else torch.float32
            )
            _check_kernel(site, table)
            self.hooks[site] = SiteEraser(site, table, self.rows)
        for site, module in modules.items():  # once all are known to fit
            module.register_forward_hook(self.hooks[site])

    def route(self, rows: Tensor) -> None:
        """Say which eraser each token of the next batch meets; tokens behind them are padding."""
        self.rows[: len(rows)].copy_(rows, non_blocking=True)
        self.rows[len(rows) :].fill_(-1)

    def check_ran(self, run: Callable[[], Any]) -> None:
        """Run the model once, as it will serve, and raise RuntimeError unless each site erased once.

        The kernels are looked for, not Python's hooks: compiled code runs none of these.
        """
        self.rows.fill_(self.default)
        with Calls() as calls:
            run()
        for site, hook in self.hooks.items():
            ran = calls.found.count(_address(hook.table))
            if ran != 1:
                raise RuntimeError(
                    f"the model ran without being erased at {site!r}: its eraser ran {ran} times in one pass, "
                    "expected 1 (a graph that was compiled without it, or a norm that this model does not call)"
                )


class Calls(TorchDispatchMode):
    """Which erasers run inside: where their factors lie."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.leace_fast.project.default:
            self.found.append(args[1].data_ptr())
        return func(*args, **(kwargs or {}))


def _address(table: EraserTable) -> int:
    probe = Calls()
    with probe:
        table(
            torch.zeros(1, table.dim, dtype=table.dtype, device=table.device), torch.full((1,), -1, device=table.device)
        )
    return probe.found[0]


def _norm_at(model: nn.Module, site: str, name: str, choices: Sequence[Mapping[str, Eraser]]) -> Any:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        norms = [each for each, module in model.named_modules() if is_norm(module)]
        raise ValueError(f"the served model has no {site!r}; its norms are {', '.join(norms[:6])}, ...") from None
    weight = getattr(module, "weight", None)
    if not is_norm(module) or not isinstance(weight, Tensor):
        raise ValueError(
            f"{site!r} is a {type(module).__name__} of the served model: only norms hold the whole residual stream "
            "there; scrub at sites='norms'"
        )
    for each in choices:
        if site in each and each[site].dim != weight.shape[-1]:
            raise ValueError(f"{site!r} has width {weight.shape[-1]}, its eraser {each[site].dim}")
    return module


def _nothing(choices: Sequence[Mapping[str, Eraser]], site: str) -> Eraser:
    """An eraser that changes nothing, for a choice without this site."""
    return next(each[site] for each in choices if site in each).scaled(0.0)


def _check_kernel(site: str, table: EraserTable) -> None:
    extension = load_extension()
    if table.device.type not in extension.devices:
        reason = extension.reason or "they were built without it"
        raise ValueError(f"{site!r} is on {table.device}, for which there are no compiled kernels here: {reason}")
    if table.device.type != "cpu" and table.rank > MOST_GPU_RANK:
        raise ValueError(f"{site!r} has an eraser of rank {table.rank}, expected {MOST_GPU_RANK} at most on a GPU")
