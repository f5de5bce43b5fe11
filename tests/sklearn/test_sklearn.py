"""The estimators: scikit-learn's own checks, pipelines, data frames, and streams."""

from __future__ import annotations

import inspect
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import leace_fast.sklearn as estimators
from leace_fast import METHODS, leace
from leace_fast.sklearn import (
    AceTransformer,
    DifferenceInMeansTransformer,
    InlpTransformer,
    LeaceTransformer,
    MeanProjectionTransformer,
    OrthTransformer,
    RlaceTransformer,
    SplinceTransformer,
    SwitchTransformer,
)
from leace_fast.sklearn._made import OF_ROWS, name_of

COMPLETE = [
    LeaceTransformer,
    OrthTransformer,
    MeanProjectionTransformer,
    AceTransformer,
    SwitchTransformer,
    SplinceTransformer,
]
PARTIAL = [DifferenceInMeansTransformer, InlpTransformer, RlaceTransformer]
QUICK: dict[type, dict[str, Any]] = {RlaceTransformer: {"steps": 60}}


EVERY = [getattr(estimators, name) for name in estimators.__all__]  # also of methods that come later


@parametrize_with_checks([estimator(**QUICK.get(estimator, {})) for estimator in EVERY])
def test_scikit_learn_s_own_checks(estimator, check) -> None:
    check(estimator)


def test_every_estimator_is_tested() -> None:
    assert {*COMPLETE, *PARTIAL} <= {*EVERY}, "EVERY holds these, and those of methods that promise less"
    assert estimators.__all__ == sorted(estimator.__name__ for estimator in EVERY)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.needs])
def test_every_method_of_moments_has_a_transformer(name: str) -> None:
    method = METHODS[name]
    made = getattr(estimators, name_of(method))
    options = inspect.signature(made).parameters
    of_method = {*list(inspect.signature(method.fit).parameters)[1:]} - OF_ROWS.get(name, set())
    own = {*(["kind"] if method.targets else []), *([] if "to" in of_method else ["strength"])}
    assert {*options} == of_method | own and all(one.kind is one.KEYWORD_ONLY for one in options.values())
    text = made.__doc__
    assert text.splitlines()[0].endswith(".") and f"leace_fast.methods.{name}" in text and ">>>" in text
    assert "Source: " in text and all(re.search(rf"^    .*\b{option}\b.*: ", text, re.M) for option in options)
    twin = pickle.loads(pickle.dumps(made))
    assert twin is made and inspect.getmodule(made).__name__.startswith("leace_fast.sklearn")  # type: ignore[union-attr]
    with pytest.raises(
        TypeError, match=rf"^{made.__name__}.__init__\(\) got an unexpected keyword argument 'strenght'"
    ):
        made(strenght=2)
    with pytest.raises(TypeError, match=r"Transformer.__init__\(\) takes 1 positional argument but 2"):
        made(1)


def test_what_is_no_projection_has_no_known_inverse() -> None:
    X, y = data(load_iris)
    fitted = LeaceTransformer(strength=2.0).fit(X, y)
    fitted._fitted = fitted.eraser_.scaled(0.5)
    with pytest.raises(ValueError, match="the eraser by 'leace' is no projection: its inverse is not known"):
        fitted.inverse_transform(X)


def data(loader: Callable[..., Any], **options: bool) -> tuple[Any, Any]:
    return loader(return_X_y=True, **options)


def gap(X: np.ndarray, y: np.ndarray) -> float:
    means = np.stack([X[y == label].mean(0) for label in np.unique(y)])
    return float(np.abs(means - means[0]).max())


@pytest.mark.parametrize("estimator", COMPLETE)
def test_classes_of_any_type_are_erased(estimator) -> None:
    X, y = data(load_iris)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    erased = estimator().fit_transform(X, names)
    assert gap(X, y) > 1
    assert gap(erased, y) < 1e-10
    assert_array_equal(erased, estimator().fit_transform(X, y))


@pytest.mark.parametrize("estimator", PARTIAL)
def test_methods_without_a_guarantee_leave_less(estimator) -> None:
    X, y = data(load_breast_cancer)
    X = (X - X.mean(0)) / X.std(0)
    erased = estimator().fit_transform(X, y)
    before, after = (LogisticRegression(max_iter=200).fit(rows, y).score(rows, y) for rows in (X, erased))
    assert before > 0.98
    assert after < 0.95
    if estimator is InlpTransformer:
        assert gap(erased, y) < 0.1


def test_a_task_is_kept() -> None:
    X, _ = data(load_breast_cancer)
    X = StandardScaler().fit_transform(X)
    task, concept = X[:, 5], (X[:, 5] + X[:, 9] > 0).astype(int)
    aim = task - task.mean()
    kept = SplinceTransformer().fit(X, concept, task=task).transform(X)
    assert gap(kept, concept) < 1e-6
    assert_allclose(aim @ kept, aim @ X, atol=1e-6)
    assert abs(aim @ LeaceTransformer().fit_transform(X, concept) - aim @ X).max() > 1
    other_way = SplinceTransformer(task_kind="numbers").fit(X, task, concept=concept).transform(X)
    assert_array_equal(kept, other_way)
    with pytest.raises(ValueError, match="expected two of them"):
        SplinceTransformer().fit(X, task, concept=concept, task=task)


def test_a_task_streams_beside_its_concept() -> None:
    X, y = data(load_breast_cancer)
    concept, names = (X[:, 9] > np.median(X[:, 9])).astype(int), np.array(["benign", "malignant"])[y]
    stream, reversed_roles = SplinceTransformer(), SplinceTransformer()
    for some in np.array_split(np.argsort(y, kind="stable"), 4):
        announced = {"classes": [0, 1], "task_classes": ["benign", "malignant"]}
        stream.partial_fit(X[some], concept[some], task=names[some], **announced)
        reversed_roles.partial_fit(X[some], names[some], concept=concept[some], **announced)
    whole = SplinceTransformer().fit(X, concept, task=names).transform(X)
    assert_allclose(stream.transform(X), whole, rtol=1e-6, atol=1e-6)
    assert_array_equal(stream.transform(X), reversed_roles.transform(X))
    assert gap(whole, concept) < 1e-8 < 1 < gap(whole, y)
    with pytest.raises(ValueError, match="got no task, but the first call had one"):
        stream.partial_fit(X, concept)
    with pytest.raises(ValueError, match="got a task, but the first call had none"):
        SplinceTransformer().fit(X, concept).partial_fit(X, concept, task=names)
    with pytest.raises(ValueError, match="task holds the class 'other'"):
        stream.partial_fit(X[:1], concept[:1], task=["other"])
    assert stream.n_samples_seen_ == len(X)
    early = SplinceTransformer().partial_fit(X[:9], concept[:9], task=names[:1].repeat(9), **announced)
    with pytest.raises(NotFittedError, match="only 'benign' has come so far|only 'malignant' has come so far"):
        early.transform(X)


def test_numbers_stay_as_many_as_they_were() -> None:
    X, y = data(load_diabetes)
    stream = SplinceTransformer(kind="numbers").partial_fit(X, y, task=X[:, :2] ** 2)
    before = stream.transform(X)
    with pytest.raises(ValueError, match=r"task has shape \(442, 3\), expected \('n', 2\) as in earlier calls"):
        stream.partial_fit(X, y, task=X[:, :3])
    assert_array_equal(stream.transform(X), before)
    assert stream.n_samples_seen_ == len(X) and stream.task_moments_.count == len(X)  # type: ignore[union-attr]


def test_classes_move_where_they_are_sent() -> None:
    X, y = data(load_breast_cancer)
    means = [X[y == label].mean(0) for label in (0, 1)]
    assert_allclose(AceTransformer(reference=1).fit_transform(X, y).mean(0), means[1], rtol=1)
    reflect = SwitchTransformer(to=None).fit(X, y)
    assert_allclose(reflect.transform(X)[y == 0].mean(0), means[1], rtol=1e-6)
    assert_allclose(reflect.inverse_transform(reflect.transform(X)), X, rtol=1e-6, atol=1e-6)
    assert not hasattr(SwitchTransformer(to=0), "inverse_transform")
    assert_allclose(SwitchTransformer(to=0).fit_transform(X, y)[y == 1].mean(0), means[0], rtol=1e-6)


def test_numbers_are_erased_as_numbers() -> None:
    X, y = data(load_diabetes)
    erased = LeaceTransformer(shrinkage=False, kind="numbers").fit_transform(X, y)
    assert LinearRegression().fit(X, y).score(X, y) > 0.5
    assert LinearRegression().fit(erased, y).score(erased, y) < 1e-8
    with pytest.raises(ValueError, match="kind is 'ordinal'"):
        LeaceTransformer(kind="ordinal").fit(X, y)  # type: ignore[arg-type]
    both = np.stack([y, X[:, 0] ** 2], 1)
    erased = LeaceTransformer(shrinkage=False).fit(X, both).transform(X)
    assert LinearRegression().fit(erased, both).score(erased, both) < 1e-8


def test_a_stream_gives_the_bits_of_one_fit() -> None:
    X, y = data(load_breast_cancer)
    whole = LeaceTransformer().fit(X, y)
    stream = LeaceTransformer()
    for begin in range(0, len(X), 100):
        stream.partial_fit(X[begin : begin + 100], y[begin : begin + 100], classes=[0, 1])
    assert_allclose(stream.transform(X), whole.transform(X), rtol=1e-9, atol=1e-9)
    assert stream.n_samples_seen_ == len(X)
    again = stream.fit(X, y)
    assert_array_equal(again.transform(X), whole.transform(X))


@pytest.mark.parametrize("estimator", [*COMPLETE, DifferenceInMeansTransformer, InlpTransformer])
def test_the_first_rows_may_be_of_one_class(estimator) -> None:
    X, y = data(load_breast_cancer)
    order = np.argsort(y, kind="stable")
    names = np.array(["benign", "malignant"])[y]
    stream = estimator()
    for some in np.array_split(order, 5)[:1]:
        stream.partial_fit(X[some], names[some], classes=["malignant", "benign"])
    with pytest.raises(NotFittedError, match=r"of \['benign', 'malignant'\] only 'benign' has come so far"):
        stream.transform(X)
    assert not hasattr(stream, "eraser_")
    for some in np.array_split(order, 5)[1:]:
        stream.partial_fit(X[some], names[some])
    assert_allclose(stream.transform(X), estimator().fit(X, names).transform(X), rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="has 1 class, 'benign', .* classes="):
        estimator().partial_fit(X[y == 0], names[y == 0])


def test_a_stream_of_numbers_may_bring_whole_ones() -> None:
    X, y = data(load_diabetes)
    z = y + 0.25 * (np.arange(len(y)) >= 100)  # the first rows are not whole, and then 100 are
    rows, z = X[::-1], z[::-1].copy()
    stream = LeaceTransformer(shrinkage=False)
    for begin in range(0, len(rows), 142):
        stream.partial_fit(rows[begin : begin + 142], z[begin : begin + 142])
    whole = LeaceTransformer(shrinkage=False).fit(rows, z)
    assert stream.classes_ is None and not (z[-100:] % 1).any()
    assert_allclose(stream.transform(X), whole.transform(X), atol=1e-12)


def test_rows_are_added_without_a_fit(monkeypatch) -> None:
    """A call of partial_fit costs no more than its rows: the eraser is made once it is asked for, and once only."""
    X, y = data(load_iris)
    fits: list[int] = []
    monkeypatch.setattr(LeaceTransformer, "_fit_eraser", lambda _, moments: fits.append(1) or leace(moments))
    stream = LeaceTransformer()
    for begin in range(0, 150, 50):
        stream.partial_fit(X[begin : begin + 50], y[begin : begin + 50], classes=[0, 1, 2])
    assert not fits
    before = stream.transform(X)
    assert_array_equal(stream.transform(X), before)
    assert len(fits) == 1
    stream.partial_fit(X[:10], y[:10]).transform(X)
    assert len(fits) == 2


def test_a_failed_call_changes_nothing() -> None:
    X, y = data(load_iris)
    fitted = LeaceTransformer().fit(X, y)
    before = fitted.transform(X)
    spoilt = X.copy()
    spoilt[0, 0] = np.nan
    for rows, labels, message in [(X, y + 1, "holds the class 3"), (spoilt, y, "NaN"), (X[:, :3], y, "4 features")]:
        with pytest.raises(ValueError, match=message):
            fitted.partial_fit(rows, labels)
    assert fitted.n_samples_seen_ == len(X)
    assert_array_equal(fitted.transform(X), before)


def test_the_concept_beside_the_task_in_a_pipeline() -> None:
    X, y = data(load_breast_cancer)
    concept = (X[:, 9] > np.median(X[:, 9])).astype(int)
    with sklearn.config_context(enable_metadata_routing=True):
        eraser = LeaceTransformer().set_fit_request(concept=True)
        pipeline = make_pipeline(StandardScaler(), eraser, LogisticRegression(max_iter=1000))
        pipeline.fit(X, y, concept=concept)
    erased = pipeline[:-1].transform(X)
    assert gap(erased, concept) < 1e-8, "the concept is gone"
    assert gap(erased, y) > 0.1 and pipeline.score(X, y) > 0.9, "and the task is not"
    with pytest.raises(ValueError, match="requires y to be passed"):
        LeaceTransformer().fit(X)


def test_an_inverse_exists_where_something_is_kept() -> None:
    X, y = data(load_iris)
    for strength in (0.0, 0.5, 2.0, -1.0):
        transformer = LeaceTransformer(strength=strength).fit(X, y)
        assert_allclose(transformer.inverse_transform(transformer.transform(X)), X, atol=1e-10)
    assert not hasattr(LeaceTransformer().fit(X, y), "inverse_transform")


def test_options_reach_the_method() -> None:
    X, y = data(load_iris)
    assert LeaceTransformer(rank=1).fit(X, y).eraser_.rank == 1
    report = LeaceTransformer(shrinkage=0.5).fit(X, y).eraser_.report
    assert report is not None and report.shrinkage == 0.5
    assert_allclose(LeaceTransformer().fit_transform(X, y).mean(0), X.mean(0))


def test_data_frames_keep_their_names() -> None:
    pandas = pytest.importorskip("pandas")
    X, y = data(load_iris, as_frame=True)
    fitted = LeaceTransformer().set_output(transform="pandas").fit(X, y)
    erased: Any = fitted.transform(X)
    assert isinstance(erased, pandas.DataFrame)
    assert list(erased.columns) == list(X.columns) == list(fitted.get_feature_names_out())
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({name: X[name].to_numpy() for name in X.columns})
    erased = LeaceTransformer().set_output(transform="polars").fit(frame, y).transform(frame)
    assert isinstance(erased, polars.DataFrame) and erased.columns == list(X.columns)


def test_float32_stays_float32_and_a_pickle_goes_on() -> None:
    X, y = data(load_iris)
    fitted = LeaceTransformer().fit(X.astype(np.float32), y)
    assert fitted.transform(X.astype(np.float32)).dtype == np.float32
    twin = pickle.loads(pickle.dumps(fitted))
    assert_array_equal(twin.partial_fit(X, y).transform(X), fitted.partial_fit(X, y).transform(X))


def test_beside_the_correlation_remover_of_fairlearn() -> None:
    preprocessing = pytest.importorskip("fairlearn.preprocessing")
    X, _ = data(load_breast_cancer)
    concept = (X[:, 0] > np.median(X[:, 0])).astype(float)
    rest = StandardScaler().fit_transform(X[:, 1:])
    theirs = preprocessing.CorrelationRemover(sensitive_feature_ids=[0]).fit_transform(np.c_[concept, rest])
    mine = LeaceTransformer(shrinkage=False).fit_transform(rest, concept)
    assert gap(theirs, concept) < 1e-8 and gap(mine, concept) < 1e-8
    # Theirs reads the concept of each row when it transforms; ours does not need it.
    assert ((mine - rest) ** 2).sum() < 2 * ((theirs - rest) ** 2).sum()


def test_the_example_of_the_page_prints_what_it_says(capsys) -> None:
    page = Path(__file__).parents[2] / "docs" / "scikit-learn.md"
    (code,) = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    with sklearn.config_context():
        exec(compile(code, page.name, "exec"), {})
    said = re.findall(r"# ([\d.]+)", code)
    assert re.findall(r": ([\d.]+)", capsys.readouterr().out) == said and len(said) == 2
