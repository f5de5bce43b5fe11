"""The drop-in takes arrays of NumPy wherever it takes tensors, and whatever shapes and dtypes the original takes."""

# The annotations are the peer's, which name tensors.
# pyright: reportArgumentType=false

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import leace_fast.concept_erasure as ours
from leace_fast.concept_erasure import optimal_transport

peer = pytest.importorskip("concept_erasure")

RANDOM = np.random.default_rng(0)
N, D = 400, 5
Y = np.arange(N) % 3
X = RANDOM.normal(size=(N, D)) + np.eye(3, D)[Y]
HOT = np.eye(3)[Y]
ERASER = ours.LeaceEraser.fit(torch.tensor(X), torch.tensor(HOT))

CALLS: dict[str, Callable[..., Any]] = {
    "LeaceEraser.fit": lambda x, y, hot: ours.LeaceEraser.fit(x, hot)(x),
    "LeaceEraser.fit, orth": lambda x, y, hot: ours.LeaceEraser.fit(x, hot, method="orth", affine=False)(x),
    "LeaceFitter.update": lambda x, y, hot: ours.LeaceFitter(D, 3, dtype=torch.float64).update(x, hot).sigma_xx,
    "LeaceEraser": lambda x, y, hot: ERASER(x),
    "OracleEraser": lambda x, y, hot: ours.OracleEraser.fit(x, hot)(x, hot),
    "OracleFitter": lambda x, y, hot: ours.OracleFitter(D, 3, dtype=torch.float64).update(x, hot).mean_z,
    "QuadraticEraser": lambda x, y, hot: ours.QuadraticEraser.fit(x, y)(x, y),
    "QuadraticEditor": lambda x, y, hot: ours.QuadraticFitter.fit(x, y).editor()(x, y, 1),
    "QuadraticFitter": lambda x, y, hot: ours.QuadraticFitter(D, 3, dtype=torch.float64).update_single(x, 1).mean_x,
    "groupby": lambda x, y, hot: ours.groupby(x, y, stable=True).coalesce(),
    "QuantileNormalizer": lambda x, y, hot: ours.QuantileNormalizer(x, y, num_bins=9).transport(x, y, 2),
    "cdf": lambda x, y, hot: ours.cdf(
        x[:, 0], np.linspace(-1, 1, 5) if isinstance(x, np.ndarray) else torch.linspace(-1, 1, 5).double()
    ),
    "shrinkage": lambda x, y, hot: ours.optimal_linear_shrinkage(x.T @ x, N),
    "ot_map": lambda x, y, hot: optimal_transport.ot_map(x[:D].T @ x[:D] + 0, x.T @ x),
}
LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "plain": lambda part: part,
    "backwards": lambda part: part[::-1].copy()[::-1],
    "columns first": lambda part: np.asfortranarray(part),
    "other byte order": lambda part: part.astype(part.dtype.newbyteorder()),
    "read-only": lambda part: np.broadcast_to(part, (1, *part.shape))[0],
    "memory map": lambda part: part.view(np.memmap),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("call", CALLS)
def test_arrays_give_what_tensors_give(call: str, layout: str) -> None:
    expected = CALLS[call](*(torch.tensor(part) for part in (X, Y, HOT)))
    found = CALLS[call](*(LAYOUTS[layout](part) for part in (X, Y, HOT)))
    torch.testing.assert_close(torch.as_tensor(found), expected)


@pytest.mark.parametrize(
    "call", ["LeaceEraser.fit", "LeaceEraser", "OracleEraser", "QuadraticEraser", "QuadraticEditor"]
)
def test_erased_arrays_are_arrays(call: str) -> None:
    found = CALLS[call](X, Y, HOT)
    assert isinstance(found, np.ndarray) and found.dtype == X.dtype and found.shape == X.shape


WRONG: dict[str, tuple[Any, str]] = {
    "masked": (np.ma.masked_array(X, X > 2), "masked array"),
    "dates": (X.astype("timedelta64[s]"), "dates or times"),
    "objects": (X.astype(object), "holds no numbers"),
    "names": (X.astype(str), "holds no numbers"),
}


@pytest.mark.parametrize("name", WRONG)
def test_arrays_that_hold_no_rows_are_refused(name: str) -> None:
    x, said = WRONG[name]
    for act in (
        lambda: ours.LeaceFitter.fit(x, HOT),
        lambda: ERASER(x),
        lambda: ours.QuadraticFitter(D, 3).update(x, Y),
    ):
        with pytest.raises(TypeError, match=said):
            act()


Z: dict[str, Callable[[], Tensor]] = {
    "one column": lambda: torch.tensor(Y == 1).double(),
    "bools": lambda: torch.tensor(Y == 1),
    "zero and one": lambda: torch.tensor(Y == 1).long(),
    "int32": lambda: torch.tensor(HOT).int(),
    "one-hot": lambda: torch.tensor(HOT),
    "one-hot integers": lambda: torch.tensor(HOT).long(),
    "one-hot bools": lambda: torch.tensor(HOT).bool(),
    "a tensor of more dimensions": lambda: torch.tensor(HOT)[:, None],
    "real-valued": lambda: torch.tensor(X[:, :2]) ** 2,
    "float32": lambda: torch.tensor(HOT).float(),
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"method": "orth"},
    {"affine": False},
    {"shrinkage": False},
    {"constrain_cov_trace": False, "svd_tol": 1e-6},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", Z)
def test_what_the_original_takes_gives_what_it_gives(name: str, options: dict[str, Any]) -> None:
    x, z = torch.tensor(X), Z[name]()
    options = {"svd_tol": 1e-9, **options}
    mine, theirs = (package.LeaceEraser.fit(x, z, **options)(x) for package in (ours, peer))
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    if "method" not in options:
        mine, theirs = (package.OracleEraser.fit(x, z.double())(x, z) for package in (ours, peer))
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(N,), (20, 20), (2, 10, 20)])
def test_rows_of_any_leading_shape(shape: tuple[int, ...]) -> None:
    x, z = torch.tensor(X).view(*shape, D), torch.tensor(HOT).view(*shape, 3)
    mine, theirs = (package.LeaceFitter(D, 3, dtype=torch.float64).update(x, z) for package in (ours, peer))
    torch.testing.assert_close(mine.mean_x, theirs.mean_x)
    torch.testing.assert_close(mine.eraser(x), theirs.eraser(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "made",
    [
        lambda: ERASER,
        lambda: ours.OracleEraser.fit(X, HOT),
        lambda: ours.QuadraticEraser.fit(X, Y),
        lambda: ours.QuadraticFitter.fit(X, Y),
        lambda: ours.LeaceFitter.fit(X, HOT),
        lambda: ours.OracleFitter.fit(X, HOT),
        lambda: ours.ConceptScrubber(),
    ],
)
def test_everything_can_be_copied_and_saved(made: Callable[[], Any]) -> None:
    one = made()
    file = io.BytesIO()
    torch.save(one, file)
    file.seek(0)
    for twin in (pickle.loads(pickle.dumps(one)), copy.deepcopy(one), torch.load(file, weights_only=False)):
        assert type(twin) is type(one)
        if isinstance(one, ours.LeaceFitter):
            assert torch.equal(twin.update(X, HOT).mean_x, one.mean_x) and int(twin.n) == 2 * int(one.n)
