"""`Eraser`: a frozen affine map of low rank that removes a concept from rows."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy
import torch
from huggingface_hub import ModelHubMixin, hf_hub_download
from torch import Tensor

from .._folders import in_place_of
from .._ops import check_project
from ._arguments import Rows, changed, factor_of, tensor_of
from ._compose import composed
from ._factors import Factored
from ._linear import MAX_COST_RATIO, linear_map, reading_alike
from ._rescaling import rescaled_parts

FILE_NAME = "eraser.safetensors"
CARD = "README.md"


class Eraser(Factored, ModelHubMixin, library_name="leace-fast", tags=["concept-erasure"]):
    """The map `e(x) = x - ((x - mean) R') L'`; what is given is copied, what is handed out is a copy.

    Rows are computed in float64 if they are float64 and in float32 otherwise,
    and rounded once to their own dtype.

    Args:
        left: (d, k), the directions that are removed.
        right: (k, d), how much of each is read from x.
        mean: (d,) the point that stays where it is, or None for the origin.
        method: name of the method that made it.
        report: how it was fitted.
        site: name of the place in a model that it belongs to.
        mean_solve: (d,) `Sxx^-1 mean`, which `without_offset` needs; kept in float64.

    Raises:
        ValueError: the shapes do not fit, or a factor is not finite.

    Source: Belrose et al. 2023, https://arxiv.org/abs/2306.03819, equation 1.

    >>> import torch
    >>> eraser = Eraser(torch.eye(3)[:, :1], torch.eye(3)[:1])
    >>> eraser(torch.ones(2, 3)).tolist()
    [[0.0, 1.0, 1.0], [0.0, 1.0, 1.0]]
    """

    @overload
    def __call__(self, x: Tensor) -> Tensor: ...
    @overload
    def __call__(self, x: numpy.ndarray) -> numpy.ndarray: ...
    def __call__(self, x: Tensor | numpy.ndarray) -> Tensor | numpy.ndarray:
        """Return the erased rows, of the shape and dtype of x (..., d): a tensor, or an array of NumPy for one.

        Args:
            x: (..., d) floating.

        Raises:
            TypeError: x is not floating, or neither a tensor nor an array.
            ValueError: the last dimension of x is not `dim`.

        Source: Belrose et al. 2023, https://arxiv.org/abs/2306.03819, equation 1.

        >>> import numpy
        >>> Eraser(numpy.eye(2)[:, :1], numpy.eye(2)[:1])(numpy.ones(2))
        array([0., 1.])
        """
        if isinstance(x, Tensor):
            return self._bound_for(x)(x)
        return self(tensor_of(x)).numpy()

    def apply_(self, x: Rows) -> Rows:
        """Erase rows in place and return x; its memory may be strided but not overlap.

        Args:
            x: (..., d) floating, a tensor or a writable array of NumPy.

        Raises:
            TypeError: x is not floating, or neither a tensor nor an array.
            ValueError: the last dimension of x is not `dim`, x is a leaf that requires a gradient, or a read-only
                array.

        Source: Belrose et al. 2023, https://arxiv.org/abs/2306.03819, equation 1.

        >>> import torch
        >>> x = torch.ones(3)
        >>> Eraser(torch.eye(3)[:, :1], torch.eye(3)[:1]).apply_(x) is x, x.tolist()
        (True, [0.0, 1.0, 1.0])
        """
        if not isinstance(x, Tensor):
            return changed(x, self.apply_)
        if x.requires_grad and x.is_leaf:
            raise ValueError("x is a leaf that requires a gradient and cannot change in place: call eraser(x) instead")
        with torch.no_grad() if x.requires_grad else contextlib.nullcontext():
            return self._bound_for(x).apply_(x)

    def isolate(self, x: Rows) -> Rows:
        """Return the erased part of x, that is `((x - mean) R') L'`, of the shape and dtype of x.

        Args:
            x: (..., d) floating, a tensor or an array of NumPy.

        Raises:
            TypeError: x is not floating, or neither a tensor nor an array.
            ValueError: the last dimension of x is not `dim`.

        Source: Belrose et al. 2023, https://arxiv.org/abs/2306.03819, equation 1.

        >>> import torch
        >>> Eraser(torch.eye(3)[:, :1], torch.eye(3)[:1]).isolate(torch.ones(3)).tolist()
        [1.0, 0.0, 0.0]
        """
        if not isinstance(x, Tensor):
            return self.isolate(tensor_of(x)).numpy()
        left, right, mean = self._factors_for(x)
        check_project(x, left, right, mean)
        centred = x.to(left.dtype) if mean is None else x.to(left.dtype) - mean
        return ((centred @ right.mT) @ left.mT).to(x.dtype)

    def scaled(self, strength: float) -> Eraser:
        """Return an eraser of another strength: 0 changes nothing, 1 erases, 2 reflects, below 0 amplifies.

        Args:
            strength: s of the map `x - s ((x - mean) R') L'`.

        Raises:
            TypeError: strength is no number.
            ValueError: it is not finite.

        Source: Gaintseva et al. 2026, https://arxiv.org/abs/2605.05220, equation 13, for a strength of 2.

        >>> import torch
        >>> Eraser(torch.eye(2)[:, :1], torch.eye(2)[:1]).scaled(2.0)(torch.ones(2)).tolist()
        [-1.0, 1.0]
        """
        if isinstance(strength, (str, bytes)):
            raise TypeError(f"strength is {strength!r}, expected a number")
        left, right, mean = self._factors
        return Eraser(left * float(strength), right, mean, **self._names)

    def rescaled(self, weight: Tensor | numpy.ndarray, bias: Tensor | numpy.ndarray | None = None) -> Eraser:
        """Return the eraser that does the same to rows of which x is `weight * rows + bias`.

        For tools that take a norm's weight and bias out of it, and into the layers behind, as TransformerLens does in
        its compatibility mode: what they call the norm's output is then another x. The report is not kept, which
        speaks of x; neither is `mean_solve` where there is a bias.

        Args:
            weight: (d,) by which the norm scaled; of those that scale by one plus it, with the one.
            bias: (d,) that it added, or None for zeros.

        Raises:
            ValueError: a shape does not fit, a number is not finite, or weight holds a zero.

        Source: docs/stacks.md, "TransformerLens".

        >>> import torch
        >>> weight, x = torch.tensor([2.0, 4.0, 8.0]), torch.tensor([6.0, 4.0, 8.0])
        >>> eraser = Eraser(torch.full((3, 1), 0.5), torch.full((1, 3), 0.5))
        >>> eraser(x).tolist(), (weight * eraser.rescaled(weight)(x / weight)).tolist()
        ([1.5, -0.5, 3.5], [1.5, -0.5, 3.5])
        """
        given = factor_of(weight), None if bias is None else factor_of(bias)
        left, right, mean, solve = rescaled_parts(*self._factors, self._mean_solve, *given)
        names = {**self._names, "report": None, "mean_solve": solve}
        mean = None if mean is None else mean.to(self.dtype)
        return Eraser(left.to(self.dtype), right.to(self.dtype), mean, **names)

    def without_offset(self, max_cost_ratio: float = MAX_COST_RATIO) -> Eraser:
        """Return the least-squares linear map that erases the same, for weights that take no bias.

        It whitens with the uncentred second moment M = Sxx + mean mean', whose inverse follows from that of Sxx by
        Sherman and Morrison's formula, so that `mean_solve` is all it needs. The mean is not kept.

        Args:
            max_cost_ratio: refuse a map that changes x more than so many times the affine one.

        Raises:
            ValueError: the cost is above that, or the eraser keeps no `mean_solve`.

        Source: Belrose et al. 2023, https://arxiv.org/abs/2306.03819, equation 3.

        >>> import torch
        >>> mean = torch.tensor([0.0, 1.0])
        >>> eraser = Eraser(torch.eye(2)[:, :1], torch.eye(2)[:1], mean, mean_solve=mean)
        >>> eraser.without_offset()(torch.ones(2)).tolist()
        [0.0, 1.0]
        """
        if self._factors[2] is None:
            return self
        ratio, linear = self._linear()
        if not ratio <= max_cost_ratio:
            raise ValueError(
                f"without an offset the eraser changes x {ratio:.3g} times as much as the affine one, at most "
                f"{max_cost_ratio} is allowed: keep the offset, or raise max_cost_ratio"
            )
        left, right = self._factors[0].double(), self._factors[1].double()
        report = self.report and replace(self.report, change=self.report.change * ratio, cost_ratio=ratio)
        names = {**self._names, "report": report}
        return Eraser(left.to(self.dtype), reading_alike(linear, right, left).to(self.dtype), **names)

    @property
    def linear_cost_ratio(self) -> float:
        """Mean squared change of x by `without_offset` over that by this eraser; 1 if it has no offset.

        Raises:
            ValueError: the eraser keeps no `mean_solve`.
        """
        return 1.0 if self._factors[2] is None else self._linear()[0]

    def _linear(self) -> tuple[float, Tensor]:
        """Return the cost ratio of the best linear map, and its R (k, d) but for rounding."""
        if self._mean_solve is None:
            raise ValueError(
                f"an eraser by {self.method!r} keeps no mean_solve, which the best linear map needs: fit it with "
                "affine=False, or by leace"
            )
        left, right, mean = (part.double() for part in self._factors if part is not None)
        return linear_map(left, right, mean, self._mean_solve)

    def compose(self, then: Eraser) -> Eraser:
        """Return one eraser that does what this one does and, after it, what another one does: `then(self(x))`.

        The rank is that of the whole, at most the sum of both.

        Args:
            then: the eraser that comes second, of the same width.

        Raises:
            TypeError: `then` is no eraser.
            ValueError: the widths differ, or the two hold the rows on parallel planes, which leaves no fixed point.

        Source: docs/methods.md, "one eraser, then another, as one".

        >>> import torch
        >>> e = torch.eye(3, dtype=torch.float64)
        >>> both = Eraser(e[:, :1], e[:1]).compose(Eraser(e[:, 1:2], e[1:2]))
        >>> both.rank, both(torch.ones(3)).tolist()
        (2, [0.0, 0.0, 1.0])
        """
        if not isinstance(then, Eraser):
            raise TypeError(f"got {type(then).__name__}, expected an Eraser")
        if then.dim != self.dim:
            raise ValueError(f"the widths differ: {self.dim} here, {then.dim} there, expected erasers of the same x")
        dtype, device = torch.promote_types(self.dtype, then.dtype), self.device
        parts = (eraser.to(device, torch.float64) for eraser in (self, then))
        try:
            left, right, mean = composed(*((part.left, part.right, part.mean) for part in parts))
        except RuntimeError as error:  # of LAPACK
            raise ValueError(f"the two cannot be composed: their factors are too large ({error})") from error
        return Eraser(left, right, mean, method=f"{self.method} + {then.method}", site=self.site).to(dtype=dtype)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> str | None:
        """Write the eraser, its config and a model card to a folder, in one step; a card that is there stays.

        Args:
            save_directory: made if it does not exist.
            options: as of `huggingface_hub.ModelHubMixin.save_pretrained`.

        Raises:
            OSError: the folder cannot be made or written to; it is as it was.

        Source: https://huggingface.co/docs/huggingface_hub/package_reference/mixins.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Eraser(torch.eye(3)[:, :1], torch.eye(3)[:1]).save_pretrained(folder)
        ...     Eraser.from_pretrained(folder).rank
        1
        """
        folder = Path(save_directory)
        with in_place_of(folder, FILE_NAME) as new:
            if (folder / CARD).is_file():
                shutil.copy2(folder / CARD, new / CARD)
            return super().save_pretrained(new, **{"repo_id": folder.name, **options})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **options: Any) -> Eraser:
        """Read what `save_pretrained` wrote or `push_to_hub` pushed; the config beside the eraser is not read.

        Args:
            pretrained_model_name_or_path: a folder; or, where there is none of that name, `owner/name` of the hub.
            options: revision, cache_dir, force_download, token and local_files_only, as of `hf_hub_download`.

        Raises:
            FileNotFoundError: there is no eraser.
            ValueError: its file is damaged or holds something else.

        Source: https://huggingface.co/docs/huggingface_hub/package_reference/mixins.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Eraser(torch.eye(3)[:, :1], torch.eye(3)[:1]).save_pretrained(folder)
        ...     Eraser.from_pretrained(folder)
        Eraser(custom: rank 1 of 3, linear, torch.float32)
        """
        return cls._from_pretrained(model_id=str(pretrained_model_name_or_path), **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save(save_directory / FILE_NAME)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> Eraser:
        if Path(model_id).is_dir():
            return cls.load(Path(model_id) / FILE_NAME)
        known = ("revision", "cache_dir", "force_download", "token", "local_files_only")
        given: dict[str, Any] = {name: options[name] for name in known if options.get(name) is not None}
        return cls.load(hf_hub_download(model_id, FILE_NAME, **given))
