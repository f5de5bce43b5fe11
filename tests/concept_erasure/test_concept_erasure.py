"""The drop-in: the results of the package `concept-erasure`, and what it gets wrong."""

from __future__ import annotations

import inspect

import pytest
import torch
from tiny_models import batch, build
from torch import Tensor

import leace_fast.concept_erasure as ours
from leace_fast.concept_erasure import optimal_transport

peer = pytest.importorskip("concept_erasure")
peer_transport = pytest.importorskip("concept_erasure.optimal_transport")

DTYPES = [torch.float64, torch.float32, torch.complex128]
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-4, torch.complex128: 1e-11}


def rows(dtype: torch.dtype, k: int = 3, n: int = 400, d: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = torch.randint(0, k, (n,), generator=generator)
    means = 3 * torch.randn(k, d, dtype=dtype, generator=generator)
    scale = 1 + z[:, None]
    return torch.randn(n, d, dtype=dtype, generator=generator) * scale + means[z], z


def one_hot(z: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    hot = torch.nn.functional.one_hot(z)
    return hot if dtype is None else hot.to(dtype)


def close(a: Tensor, b: Tensor, dtype: torch.dtype) -> None:
    assert a.shape == b.shape and a.dtype == b.dtype
    torch.testing.assert_close(a, b, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


# ------------------------------------------------------------ the same names


@pytest.mark.parametrize("name", peer.__all__)
def test_every_public_name_is_there_with_the_same_arguments(name: str) -> None:
    mine, theirs = getattr(ours, name), getattr(peer, name)
    if not (inspect.isclass(theirs) or inspect.isfunction(theirs)):
        return
    public = [member for member in vars(theirs) if not member.startswith("_")] if inspect.isclass(theirs) else []
    assert not [member for member in public if not hasattr(mine, member)]
    calls = [(mine, theirs), *((getattr(mine, m), getattr(theirs, m)) for m in public if callable(getattr(theirs, m)))]
    for one, other in calls:
        assert list(inspect.signature(one).parameters) == list(inspect.signature(other).parameters)


# ---------------------------------------------------------- the same results


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shrinkage", [True, False])
@pytest.mark.parametrize("method", ["leace", "orth"])
@pytest.mark.parametrize("affine", [True, False])
def test_the_eraser(dtype: torch.dtype, shrinkage: bool, method: ours.ErasureMethod, affine: bool) -> None:
    x, z = rows(dtype)
    options = {"shrinkage": shrinkage, "method": method, "affine": affine}
    mine = ours.LeaceEraser.fit(x, one_hot(z), **options)
    theirs = peer.LeaceEraser.fit(x, one_hot(z, dtype), **options)
    close(mine.P, theirs.P, dtype)
    close(mine(x), theirs(x), dtype)
    assert mine.proj_left.shape == (12, 2), "one-hot columns of three classes span two directions"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shrinkage", [True, False])
def test_the_statistics_of_batches(dtype: torch.dtype, shrinkage: bool) -> None:
    x, z = rows(dtype)
    options = {"shrinkage": shrinkage, "dtype": dtype}
    fitters = (ours.LeaceFitter(12, 3, **options), peer.LeaceFitter(12, 3, **options))
    oracles = (ours.OracleFitter(12, 3, **options), peer.OracleFitter(12, 3, **options))
    for begin in range(0, 400, 100):
        part = slice(begin, begin + 100)
        for fitter in (*fitters, *oracles):
            fitter.update(x[part].reshape(4, 25, 12), one_hot(z)[part])
    for name in ("mean_x", "mean_z", "sigma_xx", "sigma_xx_", "sigma_xz", "sigma_xz_"):
        mine, theirs = (getattr(fitter, name) for fitter in fitters)
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-9 if dtype != torch.float32 else 1e-2)
    for name in ("mean_x", "mean_z", "sigma_zz", "sigma_zz_", "sigma_xz", "sigma_xz_"):
        mine, theirs = (getattr(oracle, name) for oracle in oracles)
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-9 if dtype != torch.float32 else 1e-2)
    assert fitters[0].n == fitters[1].n == 400


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_oracle(dtype: torch.dtype) -> None:
    x, z = rows(dtype)
    mine, theirs = (
        package.OracleEraser.fit(x, labels) for package, labels in ((ours, one_hot(z)), (peer, one_hot(z, dtype)))
    )
    close(mine(x, one_hot(z)), theirs(x, one_hot(z, dtype)), dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("shrinkage", [True, False])
def test_quadratic_erasure_and_editing(dtype: torch.dtype, k: int, shrinkage: bool) -> None:
    x, z = rows(dtype, k=k, d=5)
    mine = ours.QuadraticFitter.fit(x, z, shrinkage=shrinkage)
    theirs = peer.QuadraticFitter.fit(x, z, shrinkage=shrinkage)
    close(mine.sigma_xx, theirs.sigma_xx, dtype)
    close(mine.editor().ot_maps, theirs.editor().ot_maps, dtype)
    close(mine.editor()(x, z, 1), theirs.editor()(x, z, 1), dtype)
    erased = mine.eraser(x, z)
    if not (dtype.is_complex and k == 2):  # there the package transposes without conjugating
        # its shares of the classes are rounded to float32
        torch.testing.assert_close(mine.eraser.ot_maps, theirs.eraser.ot_maps, rtol=1e-6, atol=1e-6)
        moved = theirs.eraser(x, z) - theirs.eraser.global_mean + mine.eraser.global_mean
        torch.testing.assert_close(erased, moved, rtol=1e-5, atol=1e-5)
    # Its own promise: all classes have one mean and one covariance afterwards, and the mean of all rows stays.
    after = ours.QuadraticFitter.fit(erased, z, shrinkage=False)
    torch.testing.assert_close(after.mean_x[1:], after.mean_x[:-1])
    torch.testing.assert_close(erased.mean(0), x.mean(0))
    if not shrinkage:
        torch.testing.assert_close(after.sigma_xx[1:], after.sigma_xx[:-1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_optimal_transport(dtype: torch.dtype) -> None:
    roots = torch.randn(3, 6, 6, dtype=dtype, generator=torch.Generator().manual_seed(1))
    matrices = roots @ roots.mH / 6
    a, b = matrices[0], matrices[1]
    mapped = optimal_transport.ot_map(a, b)
    torch.testing.assert_close(mapped @ a @ mapped, b)
    assert bool(optimal_transport.is_positive_definite(mapped))
    theirs = peer_transport.ot_distance(a, matrices).real
    torch.testing.assert_close(optimal_transport.ot_distance(a, matrices), theirs)
    # The barycentre is where the mean squared distance has no slope.
    shares = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    for some, weights in ((matrices, shares), (matrices[:2], shares.new_tensor([0.25, 0.75]))):
        centre = optimal_transport.ot_barycenter(some, weights).requires_grad_()
        (optimal_transport.ot_distance(centre, some).square() * weights).sum().backward()
        assert centre.grad is not None and centre.grad.abs().max() < 2e-6
    middle = optimal_transport.ot_midpoint(a, b, 0.25, 0.75)
    torch.testing.assert_close(middle, centre.detach(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex64], ids=str)
def test_shrinkage(dtype: torch.dtype) -> None:
    x = torch.randn(5, 20, 8, dtype=dtype, generator=torch.Generator().manual_seed(2))
    covariances = x.mH @ x / 20
    n = torch.tensor([5, 10, 20, 40, 80]).view(-1, 1, 1)
    torch.testing.assert_close(
        ours.optimal_linear_shrinkage(covariances, n), peer.optimal_linear_shrinkage(covariances, n)
    )
    zeros = torch.zeros(3, 3, dtype=dtype)
    assert torch.equal(ours.optimal_linear_shrinkage(zeros, 3), zeros)


@pytest.mark.parametrize("stable", [True, False])
@pytest.mark.parametrize("dim", [0, 1])
def test_groupby(stable: bool, dim: int) -> None:
    x, key = torch.randn(30, 30), torch.randint(0, 4, (30,))
    grouped = ours.groupby(x, key, dim=dim, stable=stable)
    assert torch.equal(grouped.coalesce(), x)
    assert torch.equal(grouped.map(lambda label, group: group + label).coalesce(), x + key.view(-1, *[1] * (1 - dim)))
    if stable:
        for label, group in grouped:
            assert torch.equal(group, x.index_select(dim, (key == label).nonzero().flatten()))


def test_quantiles() -> None:
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(4, 7, dtype=torch.float64, generator=generator).sort().values
    x = torch.cat([torch.randn(4, 20, dtype=torch.float64, generator=generator), q, q - 9, q + 9], 1)
    share = ours.cdf(x, q)
    assert torch.equal(share, (q[:, None] <= x[..., None]).sum(-1).float() / 7)
    back = ours.icdf(share, q)
    reached = share > 0
    assert bool((back[reached] <= x[reached]).all())
    assert torch.equal(ours.cdf(back, q)[reached], share[reached])
    assert torch.equal(back[~reached], q[:, :1].expand_as(back)[~reached])


def test_quantile_normalizer() -> None:
    x, z = rows(torch.float64, k=2, n=2000, d=3)
    normalizer = ours.QuantileNormalizer(x, z, num_bins=200)
    moved = normalizer.transport(x, z, 1)
    for column in range(3):
        want = x[z == 1][:, column].sort().values
        got = moved[z == 0][:, column].sort().values
        grid = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
        assert (want.quantile(grid) - got.quantile(grid)).abs().max() < 0.05 * want.std()
    assert normalizer.sample(0, 50).shape == (50, 3)
    assert bool((normalizer.cdf(0, x[z == 0]).mean(0) - 0.5).abs().max() < 0.01)


# -------------------------------------------------------------- the scrubber


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
@pytest.mark.parametrize("pre_hook", [False, True])
def test_concept_scrubber_acts_as_the_package_s(family: str, pre_hook: bool) -> None:
    model, inputs = build(family, torch.float32), batch(family)
    norms = [name for name, module in model.base_model.named_modules() if peer.utils.is_norm_layer(module)]
    outputs = []
    for package in (ours, peer):
        scrubber = package.ConceptScrubber(pre_hook=pre_hook)
        for seed, name in enumerate(norms):
            width = model.config.hidden_size
            basis = torch.linalg.qr(torch.randn(width, 2, generator=torch.Generator().manual_seed(seed)))[0]
            scrubber.erasers[name.replace(".", "-")] = package.LeaceEraser(basis, basis.mT, torch.ones(width))
        with scrubber.scrub(model), torch.no_grad():
            outputs.append(model(**inputs).logits)
    with torch.no_grad():
        clean = model(**inputs).logits
    torch.testing.assert_close(outputs[0], outputs[1])
    assert (outputs[0] - clean).abs().max() > 1e-3
    scrubber = ours.ConceptScrubber()
    scrubber.erasers["no-such-norm"] = ours.LeaceEraser(torch.eye(4)[:, :1], torch.eye(4)[:1], None)
    with pytest.raises(ValueError, match="no norm of the model is named 'no-such-norm'"), scrubber.scrub(model):
        pass


# ---------------------------------------------------- where it differs, gladly


def gap(x: Tensor, z: Tensor) -> float:
    means = torch.stack([x[z == label].mean(0) for label in z.unique()])
    return float((means - means[0]).abs().max())


def test_a_rare_class_is_erased_and_the_old_rule_is_one_argument_away() -> None:
    generator = torch.Generator().manual_seed(4)
    x, z = torch.randn(20000, 8, dtype=torch.float64, generator=generator), (torch.arange(20000) % 2000 == 0).long()
    x[z == 1] += 3
    fitted = {"shrinkage": False}
    assert gap(ours.LeaceEraser.fit(x, z, svd_tol=0.5, **fitted)(x), z) > 2, "an absolute tolerance keeps the class"
    assert gap(ours.LeaceEraser.fit(x, z, **fitted)(x), z) < 1e-11
    assert gap(ours.OracleEraser.fit(x, z)(x, z), z) < 1e-11


def test_the_old_rule_is_the_package_s() -> None:
    x, z = rows(torch.float64, k=5)
    for tolerance in (0.01, 0.3, 0.5):
        mine, theirs = (package.LeaceEraser.fit(x, one_hot(z), svd_tol=tolerance) for package in (ours, peer))
        close(mine.P, theirs.P, torch.float64)
    assert ours.LeaceEraser.fit(x, one_hot(z), svd_tol=0.5).proj_left.shape[1] < 4


def test_class_labels_are_not_taken_for_numbers() -> None:
    x, z = rows(torch.float64)
    fitter = ours.LeaceFitter(12, 1)
    with pytest.raises(ValueError, match=r"one column of integers from 0 to 2.*one_hot"):
        fitter.update(x, z)
    assert fitter.n == 0
    fitter.update(x, z.double())
    assert fitter.n == 400


def test_an_issued_eraser_never_changes() -> None:
    x, z = rows(torch.float64)
    fitter = ours.LeaceFitter.fit(x, one_hot(z))
    eraser = fitter.eraser
    before = eraser(x)
    fitter.update(x + 100, one_hot(z))
    assert torch.equal(eraser(x), before)
    assert not torch.equal(fitter.eraser(x), before)


def test_rows_that_are_not_finite_are_told_instead_of_spoiling_all() -> None:
    x, z = rows(torch.float64)
    x[3, 2] = torch.nan
    with pytest.raises(ValueError, match="1 rows held NaN or Inf"):
        _ = ours.LeaceFitter.fit(x, one_hot(z)).eraser


def test_half_precision_keeps_its_digits() -> None:
    x, z = rows(torch.float64)
    half = x.bfloat16()
    eraser = ours.LeaceEraser.fit(half, one_hot(z))
    assert eraser.proj_left.dtype == torch.float32
    assert eraser(half).dtype == torch.bfloat16
    assert gap(eraser(half.double()), z) < 1e-5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ours.LeaceFitter(4, 2, method="sal"), "method is 'sal'"),  # type: ignore[arg-type]
        (lambda: ours.LeaceFitter(4, 2, svd_tol=0.0), "svd_tol is 0.0"),
        (lambda: ours.OracleFitter(4, 2, svd_tol=-1.0), "svd_tol is -1.0"),
        (lambda: ours.LeaceFitter(4, 2).eraser, "at least two rows"),
        (lambda: ours.LeaceFitter(4, 2).update(torch.ones(3, 5), torch.ones(3, 2)), r"expected \(\.\.\., 4\)"),
        (lambda: ours.LeaceFitter(4, 2).update(torch.ones(3, 4), torch.ones(3)), "expected 2 for each of 3 rows"),
        (lambda: ours.LeaceFitter(4, 2, method="orth").sigma_xx, "method 'orth'"),
        (lambda: ours.QuadraticFitter.fit(torch.ones(3, 4), torch.tensor([0, 0, 1])).eraser, r"\[2, 1\] rows"),
        (lambda: ours.groupby(torch.ones(3), torch.ones(2, dtype=torch.int64)), r"key has shape \(2,\)"),
        (lambda: ours.cdf(0.0, torch.ones(2)), "got 2 quantiles"),
        (lambda: ours.optimal_linear_shrinkage(torch.ones(2, 3), 5), r"expected \(\.\.\., p, p\)"),
        (lambda: optimal_transport.ot_barycenter(torch.eye(2)[None]), "got 1 covariance matrices"),
    ],
)
def test_bad_input_says_what_came_and_what_was_expected(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
