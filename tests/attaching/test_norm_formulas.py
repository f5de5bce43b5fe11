"""Which formula a norm computes is found by its numbers."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from fused_norms import RMS, fuse
from scrubbed_models import eraser_of
from torch import Tensor, nn

from leace_fast.attaching._fused_norms import Formula, find_formula


class Gated(RMS):
    def forward(self, x: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) * gate


class Wide(RMS):
    """Gives float32 whatever comes."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


class Shifted(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, self.normalized_shape, self.weight + 1, self.bias, self.eps)


class Swapped(nn.Module):
    """Its bias comes first."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.beta, self.gamma = nn.Parameter(torch.randn(dim)), nn.Parameter(torch.randn(dim))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, x.shape[-1:], self.gamma, self.beta, 1e-12)


def rms(weight: str | None = "scale", offset: float = 0.0, eps: float = 1e-5) -> Formula:
    return Formula(False, weight, None, offset, eps)


def layer(weight: str | None = "weight", bias: str | None = "bias", eps: float = 1e-5) -> Formula:
    return Formula(True, weight, bias, 0.0, eps)


KNOWN = [
    (nn.LayerNorm(24), layer()),
    (nn.LayerNorm(24, eps=1e-12), layer(eps=1e-12)),
    (nn.LayerNorm(24, bias=False), layer(bias=None)),
    (nn.LayerNorm(24, elementwise_affine=False, eps=1e-6), layer(None, None, eps=1e-6)),
    (nn.RMSNorm(24, eps=1e-3), rms("weight", eps=1e-3)),
    (nn.RMSNorm(24, eps=0.0), rms("weight", eps=0.0)),
    (nn.RMSNorm(24, eps=1e-6, elementwise_affine=False), rms(None, eps=1e-6)),
    (RMS(24), rms()),
    (RMS(24, offset=1.0, eps=1e-8), rms(offset=1.0, eps=1e-8)),
    (RMS(24, own=False), rms(eps=0.7e-5)),
    (Swapped(24), layer("gamma", "beta", 1e-12)),
]


@pytest.mark.parametrize(("norm", "expected"), KNOWN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_formula_is_found_whatever_the_module_is_called(norm, expected, dtype):
    norm = copy.deepcopy(norm).to(dtype)
    for parameter in norm.parameters():
        nn.init.zeros_(parameter)  # which must not hide what it does
    found = find_formula(norm, 24)
    assert math.isclose(found.eps, expected.eps, rel_tol=1e-5)
    assert vars(found) == {**vars(expected), "eps": found.eps, "dtypes": found.dtypes}
    assert {torch.float32, torch.bfloat16} <= set(found.dtypes)


REFUSED = [
    (RMS(24, power=0.51), "neither an RMSNorm nor a LayerNorm"),
    (RMS(24, offset=0.5), "neither"),
    (Shifted(24), "neither"),
    (nn.Softmax(-1), "neither"),
    (nn.Identity(), "neither"),
    (nn.GroupNorm(4, 24), "does not take plain rows|neither"),
    (nn.LayerNorm([2, 12]), "does not take plain rows|plain vectors"),
    (Gated(24), "does not take plain rows"),
    (nn.LayerNorm(16), "plain vectors of width 24"),
    (nn.LayerNorm(24, device="meta"), "plain vectors"),
    (nn.Sequential(nn.LayerNorm(24)), "holds other modules"),
]


@pytest.mark.parametrize(("norm", "reason"), REFUSED)
def test_what_matches_no_formula_is_refused(norm, reason):
    before = {name: part.clone() for name, part in norm.state_dict().items()}
    with pytest.raises(ValueError, match=reason):
        find_formula(norm, 24)
    assert all(torch.equal(part, before[name]) for name, part in norm.state_dict().items() if not part.is_meta)


def test_a_norm_that_gives_another_dtype_is_fused_for_its_own_only():
    norm = Wide(24)
    assert find_formula(norm, 24).dtypes == (torch.float64, torch.float32)
    eraser = eraser_of("", 2, 24)
    x = torch.randn(5, 24)
    plain = norm(x.bfloat16())
    end = fuse(norm, eraser)
    assert torch.allclose(norm(x), eraser(RMS.forward(norm, x)), atol=1e-6)
    assert torch.equal(norm(x.bfloat16()), eraser(plain)) and norm(x.bfloat16()).dtype == torch.float32
    end()
    assert torch.equal(norm(x.bfloat16()), plain)
