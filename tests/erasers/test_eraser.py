"""`Eraser`: what it does, that it is frozen, its files and its way to and from the Hugging Face hub."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any

import cases
import numpy
import pytest
import torch
from cases import PRECISIONS, Precision

from leace_fast import Eraser, leace
from leace_fast.erasers import _eraser as eraser_module
from leace_fast.erasers._eraser import FILE_NAME


def fitted(dtype: torch.dtype = torch.float64) -> Eraser:
    return leace(cases.classes(300, 6, 3).to(dtype).moments(), shrinkage=False)


def assert_same(one: Eraser, two: Eraser) -> None:
    """Compare two erasers to the bit, with all that they carry."""
    for part in ("left", "right", "mean", "mean_solve"):
        mine, theirs = getattr(one, part), getattr(two, part)
        assert (mine is None) == (theirs is None)
        assert mine is None or (mine.dtype == theirs.dtype and torch.equal(mine, theirs)), part
    assert (one.method, one.site, one.report) == (two.method, two.site, two.report)


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_call_isolate_and_apply_agree(precision: Precision) -> None:
    eraser = fitted()
    x = (torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0)) + 1).to(precision.dtype)
    out, taken = eraser(x), eraser.isolate(x)
    assert out.dtype == taken.dtype == x.dtype and out.shape == taken.shape == x.shape
    # The erased part and what is left are x again, up to the rounding of three numbers.
    torch.testing.assert_close(out.double() + taken.double(), x.double(), rtol=0, atol=8 * torch.finfo(x.dtype).eps)
    in_place = x.clone()
    assert eraser.apply_(in_place) is in_place
    assert torch.equal(in_place, out)
    wide = torch.zeros(2, 5, 12, dtype=precision.dtype)
    wide[..., ::2] = x
    eraser.apply_(wide[..., ::2])
    assert torch.equal(wide[..., ::2], out) and not wide[..., 1::2].any(), "strided memory, and no other"


def test_strengths() -> None:
    eraser = fitted()
    x = torch.randn(9, 6, dtype=torch.float64)
    for strength, factor in ((0.0, 0.0), (0.5, 0.5), (1.0, 1.0), (2.0, 2.0), (-1.0, -1.0)):
        expected = x - factor * eraser.isolate(x)
        torch.testing.assert_close(eraser.scaled(strength)(x), expected, rtol=0, atol=1e-13)
    assert torch.equal(eraser.scaled(0.0)(x), x)
    torch.testing.assert_close(eraser.scaled(2.0)(eraser.scaled(2.0)(x)), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{"shrinkage": False}, {"shrinkage": 0.3}, {"rank": 1, "ridge": 1e-3}], ids=str)
@pytest.mark.parametrize("name", cases.HARD)
def test_without_offset_is_the_linear_fit(name: str, options: dict[str, Any]) -> None:
    data = cases.HARD[name]()
    moments = data.moments()
    eraser = leace(moments, **options)
    wanted = leace(moments, affine=False, max_cost_ratio=math.inf, **options)
    linear = eraser.without_offset(math.inf)
    assert linear.mean is None and linear.mean_solve is None and linear.without_offset(1.0) is linear
    x = data.x.double()
    change = wanted.isolate(x).norm()
    assert float((linear(x) - wanted(x)).norm() / change) < 1e-10
    torch.testing.assert_close(linear.right @ linear.left, wanted.right @ wanted.left, rtol=0, atol=1e-12)
    assert linear.report is not None and wanted.report is not None
    assert linear.report.cost_ratio == pytest.approx(wanted.report.cost_ratio, rel=1e-12)
    assert linear.report.change == pytest.approx(wanted.report.change, rel=1e-12)


def test_without_offset_of_other_strengths_dtypes_and_methods() -> None:
    eraser, x = fitted(), torch.randn(9, 6, dtype=torch.float64)
    linear = eraser.without_offset()
    for strength in (0.0, 2.0, -1.0):
        expected = x - strength * linear.isolate(x)
        torch.testing.assert_close(eraser.scaled(strength).without_offset()(x), expected, rtol=0, atol=1e-12)
    narrow = eraser.to(dtype=torch.float32).without_offset()
    assert narrow.dtype == eraser.to(torch.float32).dtype == eraser.to("cpu", torch.float32).dtype == torch.float32
    torch.testing.assert_close(narrow(x), linear(x), rtol=0, atol=1e-5)
    assert fitted().to(dtype=torch.float32).mean_solve.dtype == torch.float64  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="keeps no mean_solve"):
        Eraser(eraser.left, eraser.right, eraser.mean).without_offset()
    dear = leace(cases.HARD["mean in the span"]().moments())
    with pytest.raises(ValueError, match=r"times as much as the affine one, at most 1\.1 is allowed: keep the offset"):
        dear.without_offset()
    for solve in (torch.zeros(5), torch.full((6,), math.nan)):
        with pytest.raises(ValueError, match="mean_solve has shape|NaN"):
            Eraser(eraser.left, eraser.right, eraser.mean, mean_solve=solve)


def test_gradient_of_x_is_the_transposed_map() -> None:
    eraser = fitted()
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(eraser, (x,))
    hidden = x * 2
    eraser.apply_(hidden)  # not a leaf: it may change
    assert not eraser.left.requires_grad


def test_frozen() -> None:
    eraser = fitted()
    for name, value in (("left", torch.zeros(6, 2)), ("site", "elsewhere"), ("report", None), ("anything", 1)):
        with pytest.raises(AttributeError, match=f"frozen: cannot set '{name}', make another Eraser"):
            setattr(eraser, name, value)
    with pytest.raises(AttributeError, match="frozen: cannot delete 'method'"):
        del eraser.method
    with pytest.raises(AttributeError):
        eraser.report.rank = 3  # type: ignore[union-attr, misc]


def test_an_issued_eraser_never_changes() -> None:
    data = cases.classes(300, 6, 3)
    moments = data.moments()
    eraser = leace(moments)
    x = torch.randn(9, 6)
    before, expected = copy.deepcopy(eraser), eraser(x)
    moments.update(data.x + 3, data.y).merge(cases.classes(50, 6, 3, seed=9).moments())
    for part in (eraser.left, eraser.right, eraser.mean):
        assert part is not None
        part.fill_(7)
    moments.mean.zero_()
    others = eraser.scaled(3.0), eraser.to(dtype=torch.float32), eraser.with_site("here")
    assert all(other is not eraser for other in others)
    assert_same(eraser, before)
    assert torch.equal(eraser(x), expected)


def test_what_is_given_is_copied() -> None:
    left, right, mean = torch.eye(4)[:, :2], torch.eye(4)[:2], torch.ones(4)
    eraser = Eraser(left, right, mean)
    for part in (left, right, mean):
        part.fill_(5)
    assert eraser(torch.zeros(4)).tolist() == [1.0, 1.0, 0.0, 0.0]


def test_factors_keep_their_digits() -> None:
    """Rows of few digits are computed in float32, and factors of few digits are never rounded further."""
    eraser = fitted()
    assert eraser.dtype == torch.float64 and eraser.to(dtype=torch.float32).dtype == torch.float32
    assert Eraser(torch.eye(3).bfloat16(), torch.eye(3).bfloat16()).dtype == torch.float32
    assert_same(eraser.to(dtype=torch.float64), eraser)
    for dtype in (torch.bfloat16, torch.float16, torch.int64):
        with pytest.raises(ValueError, match=f"dtype is {dtype}, expected torch.float32 or torch.float64"):
            eraser.to(dtype=dtype)


def test_output_is_rounded_once() -> None:
    """At a large mean, what float16 rows lose is the rounding of the result."""
    eraser = fitted()
    shifted = Eraser(eraser.left, eraser.right, eraser.mean + 100)  # type: ignore[operator]
    x = (torch.randn(200, 6, generator=torch.Generator().manual_seed(0)) + 100).half()
    exact = shifted(x.double())
    assert ((shifted(x).double() - exact).abs() <= exact.abs() * 2.0**-11 + 1e-4).all()


def test_repr_tells_what_it_is() -> None:
    eraser = fitted()
    assert repr(eraser) == "Eraser(leace: rank 2 of 6, affine, keeps the mean, torch.float64)"
    assert "leace at model.norm: rank 2 of 6" in repr(eraser.with_site("model.norm"))
    assert "linear" in repr(Eraser(eraser.left, eraser.right))
    with pytest.warns(UserWarning, match="not erased"):
        partial = leace(cases.Data(torch.randn(50, 6), torch.arange(50) % 2, {"num_classes": 3}).moments())
    assert "not erased: 1" in repr(partial)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(3, 1), torch.ones(2, 3)), "left (3, 1) and right (2, 3), expected (d, k) and (k, d)"),
        ((torch.ones(3), torch.ones(3)), "left (3,) and right (3,), expected (d, k) and (k, d)"),
        ((torch.ones(3, 1), torch.ones(1, 3), torch.ones(2)), "mean has shape (2,), expected (3,)"),
        ((torch.full((3, 1), torch.nan), torch.ones(1, 3)), "a factor holds NaN or Inf"),
        ((torch.ones(3, 1), torch.ones(1, 3), torch.full((3,), torch.inf)), "a factor holds NaN or Inf"),
    ],
)
def test_refuses_factors_that_do_not_fit(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Eraser(*arguments)


@pytest.mark.parametrize("act", [lambda e, x: e(x), lambda e, x: e.apply_(x), lambda e, x: e.isolate(x)])
def test_refuses_rows_that_do_not_fit(act: Any) -> None:
    eraser = fitted()
    whole = torch.arange(12).reshape(2, 6)
    with pytest.raises(
        TypeError, match=r"x has dtype torch.int64, expected a floating dtype of 16 bits or more: convert it"
    ):
        act(eraser, whole)
    assert torch.equal(whole, torch.arange(12).reshape(2, 6)), "unchanged"
    with pytest.raises(TypeError, match=r"float8_e5m2, expected a floating dtype of 16 bits or more"):
        act(eraser, torch.ones(2, 6).to(torch.float8_e5m2))
    with pytest.raises(ValueError, match=r"x has shape \(2, 5\), expected \(\.\.\., 6\)"):
        act(eraser, torch.randn(2, 5))


def test_a_leaf_that_requires_a_gradient_does_not_change_in_place() -> None:
    x = torch.randn(2, 6, requires_grad=True)
    before = x.detach().clone()
    with pytest.raises(ValueError, match=r"leaf that requires a gradient .* call eraser\(x\) instead"):
        fitted().apply_(x)
    assert torch.equal(x.detach(), before)


@pytest.mark.parametrize("site", [None, "model.layers.3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_file_is_exact(tmp_path: Path, dtype: torch.dtype, site: str | None) -> None:
    for eraser in (fitted(), Eraser(fitted().left, fitted().right, method="mine"), fitted().scaled(0.5)):
        kept = eraser.to(dtype=dtype).with_site(site)
        kept.save(tmp_path / "e.safetensors")
        assert_same(Eraser.load(tmp_path / "e.safetensors"), kept)


def test_folder_round_trip(tmp_path: Path) -> None:
    eraser = fitted().with_site("model.norm")
    eraser.save_pretrained(tmp_path / "kept")
    assert FILE_NAME in {path.name for path in (tmp_path / "kept").iterdir()}
    assert_same(Eraser.from_pretrained(tmp_path / "kept"), eraser)
    assert_same(Eraser.from_pretrained(str(tmp_path / "kept")), eraser)


def test_push_uploads_the_eraser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    uploaded: dict[str, Any] = {}

    def upload_folder(self: HfApi, *, repo_id: str, folder_path: Any, **options: Any) -> str:
        content = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        uploaded.update(repo_id=repo_id, content=content)
        return "done"

    class Made:
        repo_id = "someone/erasers"

    monkeypatch.setattr(HfApi, "create_repo", lambda self, **options: Made())
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    eraser = fitted()
    eraser.push_to_hub("someone/erasers")
    assert uploaded["repo_id"] == "someone/erasers"
    (tmp_path / FILE_NAME).write_bytes(uploaded["content"][FILE_NAME])
    assert_same(Eraser.load(tmp_path / FILE_NAME), eraser)
    assert set(uploaded["content"]) <= {FILE_NAME, "README.md", "config.json"}


def test_pull_downloads_the_eraser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.hub_mixin as mixin
    from huggingface_hub.errors import HfHubHTTPError

    class Absent(HfHubHTTPError):
        def __init__(self) -> None:
            Exception.__init__(self, "there is no config.json")

    eraser, asked = fitted(), []
    eraser.save(tmp_path / FILE_NAME)

    def download(repo_id: str, filename: str, **options: Any) -> str:
        asked.append((repo_id, filename, options))
        assert all(value is not None for value in options.values()), "absent options are left out"
        return str(tmp_path / filename)

    def absent(*arguments: Any, **options: Any) -> str:
        raise Absent

    monkeypatch.setattr(mixin, "hf_hub_download", absent)
    monkeypatch.setattr(eraser_module, "hf_hub_download", download)
    assert_same(Eraser.from_pretrained("someone/erasers"), eraser)
    assert asked[0][:2] == ("someone/erasers", FILE_NAME)
    assert_same(Eraser.from_pretrained("someone/erasers", revision="v2"), eraser)
    assert asked[1][2]["revision"] == "v2"


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_arrays_of_numpy_give_arrays(dtype: str) -> None:
    eraser = Eraser(torch.eye(6)[:, :2], torch.eye(6)[:2], torch.ones(6))
    x = numpy.random.default_rng(0).normal(size=(2, 3, 6)).astype(dtype)
    out = eraser(x)
    assert isinstance(out, numpy.ndarray) and out.dtype == x.dtype and out.shape == x.shape
    assert torch.equal(torch.from_numpy(out), eraser(torch.from_numpy(x)))
    with pytest.raises(TypeError, match="x is a list"):
        eraser([[1.0] * 6])  # type: ignore[arg-type]
