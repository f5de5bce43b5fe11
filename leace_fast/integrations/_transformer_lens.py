"""`transformer_lens_hooks`: erasers as hooks of a TransformerBridge, right also once it has taken its norms apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..erasers import Eraser
from ..models import bare_name, is_norm

ADVICE = "make the hooks before enable_compatibility_mode(), or pass clean=, the model without a bridge"

# of what an eraser takes out, in the mean of a row: what fitted erasers do there is rounding and their ridge
MOST_UNCENTRED = 1e-4


class NormHook:
    """What a hook does with a norm's output: its eraser, in the units that the norm has at that time.

    Args:
        eraser: of the norm's output, as it was fitted.
        component: the norm in the bridge.
        affine: its weight and bias when the eraser was fitted.
    """

    def __init__(self, eraser: Eraser, component: nn.Module, affine: tuple[Tensor, Tensor]) -> None:
        self.eraser, self.component, self.affine = eraser, component, affine
        self._now: tuple[tuple[Tensor, Tensor], Eraser] | None = None

    def __call__(self, value: Tensor, hook: Any = None) -> Tensor:
        """Return the erased output."""
        return self._eraser(_affine_of(self.component, value.shape[-1]))(value)

    def _eraser(self, now: tuple[Tensor, Tensor]) -> Eraser:
        if self._now is None or not all(torch.equal(*pair) for pair in zip(now, self._now[0], strict=True)):
            (weight, bias), (new_weight, new_bias) = self.affine, now
            if torch.equal(weight, new_weight) and torch.equal(bias, new_bias):
                rescaled = self.eraser
            else:  # the fitted output is `weight / new_weight` times this one, and a constant
                scale = weight / new_weight
                rescaled = self.eraser.rescaled(scale, bias - scale * new_bias)
                self._check_centred(rescaled)
            self._now = now, rescaled
        return self._now[1]

    def _check_centred(self, rescaled: Eraser) -> None:
        """Raise ValueError where rows of mean zero would not stay so: the layers behind read centred rows alone."""
        if getattr(self.component, "uses_rms_norm", False):
            return
        left = rescaled.left.double()
        off, whole = float(left.mean(0).norm()) * rescaled.dim**0.5, float(left.norm())
        if off > MOST_UNCENTRED * whole:
            raise ValueError(
                f"the eraser of {self.eraser.site!r} moves the mean of its rows ({off / whole:.1%} of what it takes "
                "out), which the layers behind do not see in compatibility mode: use one that was fitted on the "
                "norm's rows, or enable_compatibility_mode(fold_ln=False)"
            )


def transformer_lens_hooks(
    bridge: Any, erasers: Mapping[str, Eraser], clean: nn.Module | None = None
) -> list[tuple[str, Callable[..., Tensor]]]:
    """Return erasers as forward hooks of a `TransformerBridge`, for `run_with_hooks(fwd_hooks=...)` and `hooks(...)`.

    Compatibility mode takes the weight and bias out of each norm and into the layers that read it, so that
    `ln1.hook_out` is another x than that of the fitted model. Each hook looks at its norm when it runs and erases in
    the units that it has by then, so they may be made before that mode is enabled and serve afterwards.

    Args:
        bridge: that `TransformerBridge.boot_transformers` returned.
        erasers: by the name of their site in the model of transformers, such as a `Scrubber`; norms alone.
        clean: the same model without a bridge; needed where compatibility mode is on already, since the weights of its
            norms are gone then.

    Raises:
        TypeError: this is no bridge.
        ValueError: the bridge lacks a site, a site is no norm, an eraser has another width, or compatibility mode is
            on and `clean` was not given. A hook raises it when it runs behind a LayerNorm that was taken apart, where
            an eraser that was not fitted there would move the mean of rows: that mode drops it.

    >>> transformer_lens_hooks(nn.Linear(2, 2), {})
    Traceback (most recent call last):
    TypeError: a Linear has no original_model, expected a TransformerBridge of TransformerLens 3 or later
    """
    original = getattr(bridge, "original_model", None)
    if not isinstance(original, nn.Module):
        kind = type(bridge).__name__
        raise TypeError(f"a {kind} has no original_model, expected a TransformerBridge of TransformerLens 3 or later")
    if getattr(bridge, "compatibility_mode", False) and clean is None:
        raise ValueError(f"compatibility mode is on, and the weights of the norms are gone: {ADVICE}")
    components: dict[str, nn.Module] = {}
    for name, module in original.named_modules():
        components.setdefault(bare_name(name), module)
    hooks = []
    for site, eraser in erasers.items():
        component = components.get(bare_name(site))
        if component is None:
            raise ValueError(f"the model in the bridge has no module {site!r}: erasers of another model?")
        point: Any = getattr(component, "hook_out", None)
        held: Any = getattr(component, "original_component", None)
        if point is None or point.name is None or held is None or not is_norm(held):
            raise ValueError(f"{site!r} is no norm of the bridge ({type(component).__name__}): leave it out")
        source = component if clean is None else clean.get_submodule(site)
        affine = _affine_of(source, eraser.dim, offset=bool(getattr(component, "uses_weight_offset", False)))
        if len(affine[0]) != eraser.dim:
            raise ValueError(f"{site!r} puts out rows of width {len(affine[0])}, its eraser is for {eraser.dim}")
        hooks.append((point.name, NormHook(eraser, component, affine)))
    return hooks


def _affine_of(norm: Any, dim: int, offset: bool | None = None) -> tuple[Tensor, Tensor]:
    """The weight and the bias of a norm, or of its component in a bridge, in float64; ones and zeros for none."""
    held = getattr(norm, "original_component", norm)
    weight, bias = getattr(held, "weight", None), getattr(held, "bias", None)
    offset = bool(getattr(norm, "uses_weight_offset", False)) if offset is None else offset
    scale = torch.ones(dim, dtype=torch.float64) if weight is None else weight.detach().cpu().double() + offset
    return scale, torch.zeros_like(scale) if bias is None else bias.detach().cpu().double()
