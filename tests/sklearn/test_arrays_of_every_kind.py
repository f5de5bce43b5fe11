"""Transformers take what scikit-learn's own take: frames, lists, arrays of any layout; and refuse what these refuse."""

from __future__ import annotations

import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from interruptions import Instructions, points
from laws import assert_same_bits, settled_bits

sklearn = pytest.importorskip("sklearn")
from sklearn.base import clone  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402

from leace_fast.sklearn import (  # noqa: E402
    InlpTransformer,
    LeaceTransformer,
    OrthTransformer,
    RlaceTransformer,
    SplinceTransformer,
)

RANDOM = np.random.default_rng(0)
Y = np.arange(120) % 2
X = RANDOM.normal(size=(120, 4)) + Y[:, None]
EACH = pytest.mark.parametrize(
    "make",
    [LeaceTransformer, OrthTransformer, InlpTransformer, SplinceTransformer, lambda: RlaceTransformer(steps=20)],
    ids=["leace", "orth", "inlp", "splince", "rlace"],
)


def frame() -> Any:
    return pytest.importorskip("pandas").DataFrame(X, columns=list("abcd"))


ROWS = {
    "backwards": lambda: X[::-1].copy()[::-1],
    "columns first": lambda: np.asfortranarray(X),
    "other byte order": lambda: X.astype(X.dtype.newbyteorder()),
    "read-only": lambda: np.broadcast_to(X, (1, *X.shape))[0],
    "lists": X.tolist,
    "a frame": frame,
    "a tensor": lambda: torch.tensor(X),
    "long doubles": lambda: X.astype(np.longdouble),
    "objects": lambda: X.astype(object),
}
LABELS = {
    "backwards": lambda: Y[::-1].copy()[::-1],
    "other byte order": lambda: Y.astype(Y.dtype.newbyteorder()),
    "a list": Y.tolist,
    "names": lambda: np.array(["no", "yes"])[Y],
    "a list of names": lambda: np.array(["no", "yes"])[Y].tolist(),
    "objects": lambda: np.array(["no", "yes"], dtype=object)[Y],
    "bools": lambda: Y == 1,
    "a series": lambda: pytest.importorskip("pandas").Series(Y),
    "a series of names": lambda: pytest.importorskip("pandas").Series(np.array(["no", "yes"])[Y]),
    "categories": lambda: pytest.importorskip("pandas").Series(np.array(["no", "yes"])[Y]).astype("category"),
    "nullable integers": lambda: pytest.importorskip("pandas").Series(Y).astype("Int64"),
    "one column": lambda: Y[:, None],
    "unsigned": lambda: Y.astype(np.uint16),
}


@pytest.mark.filterwarnings("error:.*not writable")
@EACH
@pytest.mark.parametrize("name", ROWS)
def test_rows(make: Any, name: str) -> None:
    expected = make().fit(X, Y).transform(X)
    assert np.array_equal(np.asarray(make().fit(ROWS[name](), Y).transform(ROWS[name]())), expected)


@EACH
@pytest.mark.parametrize("name", LABELS)
def test_labels(make: Any, name: str) -> None:
    expected = make().fit(X, Y).transform(X)
    assert np.array_equal(make().fit(X, LABELS[name]()).transform(X), expected)


@pytest.mark.parametrize("lay", [lambda z: z[::-1].copy()[::-1], lambda z: z.astype(">f8"), lambda z: z.tolist()])
@pytest.mark.parametrize("width", [1, 2])
def test_numbers(lay: Any, width: int) -> None:
    z = X[:, 0] ** 2 if width == 1 else X[:, :2] ** 2
    expected = LeaceTransformer(kind="numbers").fit(X, z).transform(X)
    assert np.array_equal(LeaceTransformer(kind="numbers").fit(X, lay(z)).transform(X), expected)


REFUSED = {
    "sparse": (lambda: pytest.importorskip("scipy.sparse").csr_matrix(X), "[Ss]parse"),
    "masked": (lambda: np.ma.masked_array(X, X > 1), "masked array"),
    "dates": (lambda: X.astype("datetime64[s]"), "dates or times"),
    "durations": (lambda: X.astype("timedelta64[s]"), "dates or times"),
    "complex": (lambda: X.astype(complex), "[Cc]omplex"),
    "names": (lambda: X.astype(str).astype(object) + "a", "could not convert"),
    "one dimension": (lambda: X[:, 0], "2D array"),
    "no rows": (lambda: X[:0], "0 sample"),
}


@EACH
@pytest.mark.parametrize("name", REFUSED)
def test_what_holds_no_rows_is_refused(make: Any, name: str) -> None:
    make_rows, said = REFUSED[name]
    rows = make_rows()
    for act in (lambda: make().fit(rows, Y), lambda: make().fit(X, Y).transform(rows)):
        with pytest.raises((TypeError, ValueError), match=said):
            act()


def test_masked_labels_are_refused() -> None:
    with pytest.raises(TypeError, match="y is a masked array"):
        LeaceTransformer().fit(X, np.ma.masked_array(Y, Y > 0))


@EACH
def test_frames_come_out_as_frames_where_that_is_asked_for(make: Any) -> None:
    pandas = pytest.importorskip("pandas")
    out = make().set_output(transform="pandas").fit(frame(), Y).transform(frame())
    assert isinstance(out, pandas.DataFrame) and list(out.columns) == list("abcd")
    fitted = make().fit(frame(), Y)
    assert fitted.get_feature_names_out().tolist() == list("abcd") and fitted.feature_names_in_.tolist() == list("abcd")
    with pytest.raises(ValueError, match="feature names"):
        fitted.transform(frame()[list("dcba")])


@EACH
def test_clones_pickles_and_pipelines(make: Any) -> None:
    fitted = make().fit(X, Y)
    expected = fitted.transform(X)
    twin: Any = clone(fitted)
    assert np.array_equal(twin.fit(X, Y).transform(X), expected)
    assert np.array_equal(pickle.loads(pickle.dumps(fitted)).transform(X), expected)
    line = make_pipeline(StandardScaler(), make(), LogisticRegression()).fit(X, Y)
    assert line.score(X, Y) < 0.65


@pytest.mark.parametrize("with_task", [False, True])
def test_a_stream_that_is_interrupted_is_as_before_or_after(with_task: bool) -> None:
    """Rows come to all statistics of a transformer or to none, and no eraser of fewer rows stays."""

    def act(stream: Any) -> None:
        more = {"task": X[60:, 0]} if with_task else {}
        stream.partial_fit(X[60:], Y[60:], **more)

    def begun() -> Any:
        stream = SplinceTransformer() if with_task else LeaceTransformer()
        stream.partial_fit(X[:60], Y[:60], **({"task": X[:60, 0]} if with_task else {}))
        assert stream.eraser_.rank == 1
        return stream

    def held(stream: Any) -> list[Any]:
        return [
            settled_bits(one) for one in (stream.moments_, getattr(stream, "task_moments_", None)) if one is not None
        ]

    def same(one: list[Any], two: list[Any]) -> bool:
        try:
            for here, there in zip(one, two, strict=True):
                assert_same_bits(here, there)
        except AssertionError:
            return False
        return True

    before, after = begun(), begun()
    number = points(lambda: act(after), Instructions)
    for at in sorted(random.Random(0).sample(range(number), 60)):
        stream = begun()
        with pytest.raises(KeyboardInterrupt), Instructions(at):
            act(stream)
        found = held(stream)
        whole = same(found, held(after))
        assert whole or same(found, held(before))
        expected = after if whole else before
        assert stream.n_samples_seen_ == expected.n_samples_seen_
        assert torch.equal(stream.eraser_.left, expected.eraser_.left)
