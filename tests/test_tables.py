"""Tables, end to end: rounding, constant columns, rows far outside, and the types of columns."""

import datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris
from sklearn.impute import SimpleImputer
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline

from sklearn_diffuq import DiffusionCalibratedClassifier, FTTransformerClassifier
from sklearn_diffuq.exceptions import ColumnWarning

pytestmark = pytest.mark.filterwarnings("ignore::sklearn_diffuq.exceptions.CalibrationWarning")
INFERENCE = ("sampling", "moments", "mean")


def small(**params):
    params = {"max_epochs": 5, "width": 16, "n_blocks": 2} | params
    return FTTransformerClassifier(device="cpu", random_state=0, **params)


def calibrated(X, y, table=None, **params):
    params = {"transition": "blockwise", "device": "cpu", "random_state": 0} | params
    return DiffusionCalibratedClassifier(table or small(), **params).fit(X, y)


@pytest.fixture(scope="module")
def iris():
    return load_iris(return_X_y=True)


@pytest.fixture(scope="module")
def fitted(iris):
    X, y = iris
    return calibrated(X[::2], y[::2], small(max_epochs=20))


@pytest.mark.parametrize(
    "rounded", [lambda X: X.astype(np.float32), lambda X: X / 10 * 10], ids=["float32", "tenth"]
)
def test_rounding_hardly_changes_the_answer(iris, fitted, rounded):
    X = iris[0]
    for inference in INFERENCE:
        fitted.set_params(inference=inference)
        change = fitted.predict_proba(rounded(X)) - fitted.predict_proba(X)
        assert np.abs(change).max() < 1e-3
    assert np.abs(fitted.score_samples(rounded(X)) - fitted.score_samples(X)).max() < 1e-3


def test_the_unit_of_the_columns_does_not_matter(iris):
    X, y = iris
    expected = small(max_epochs=3).fit(X, y).predict_proba(X)
    for unit in (1e-8, 1e7):
        found = small(max_epochs=3).fit(X * unit, y).predict_proba(X * unit)
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("value", [3.0, np.nan, 0.1])
def test_a_constant_column_has_no_effect_later(iris, value):
    X, y = iris
    frame = pd.DataFrame(X, columns=["a", "b", "c", "d"]).assign(blank=value, word="same")
    with pytest.warns(ColumnWarning, match="column 'blank', 'word': constant") as caught:
        clf = calibrated(frame, y)
    assert len(caught) == 1
    expected, scores = clf.predict_proba(frame), clf.score_samples(frame)
    for other in (0.0, 1e9, np.nan):
        later = frame.assign(blank=other, word="else")
        np.testing.assert_array_equal(clf.predict_proba(later), expected)
        np.testing.assert_array_equal(clf.score_samples(later), scores)


def test_a_constant_column_of_an_array_is_named_by_its_position(iris):
    X, y = iris
    with pytest.warns(ColumnWarning, match="column 4: "):
        clf = small(max_epochs=1).fit(np.c_[X, np.ones(150)], y)
    found = clf.predict_proba(np.c_[X, np.arange(150)])
    np.testing.assert_array_equal(found, clf.predict_proba(np.c_[X, np.ones(150)]))


def test_a_value_that_is_known_or_missing_is_not_constant(iris):
    X, y = iris
    frame = pd.DataFrame({"flag": np.where(y == 1, np.nan, 1.0), "a": X[:, 0]})
    clf = small().fit(frame, y)  # and no warning
    known, missing = clf.predict_proba(frame.iloc[[0, 0]].assign(flag=[1.0, np.nan]))
    assert np.abs(known - missing).max() > 1e-3


def test_far_rows_look_unfamiliar_and_are_less_sure(iris, fitted):
    X, new = iris[0][::2], iris[0][1::2]
    inside = fitted.score_samples(new)
    areas = []
    for factor in (2, 10, 1000):
        far = new * factor
        scores = np.r_[inside, fitted.score_samples(far)]
        areas.append(roc_auc_score(np.repeat([1, 0], len(new)), scores))
        nearest = np.clip(far, X.min(0), X.max(0))
        for inference in INFERENCE:
            fitted.set_params(inference=inference)
            sure, known = fitted.predict_proba(far).max(1), fitted.predict_proba(nearest).max(1)
            assert (sure <= known + 1e-9).all()
            assert sure.max() <= fitted.predict_proba(X).max(1).max()
    assert areas == sorted(areas)
    assert areas[-1] > 0.95
    assert np.abs(fitted.predict_proba(new * 1e6) - 1 / 3).max() < 1e-3
    assert np.isfinite(fitted.predict_proba(new * 1e300)).all()


@pytest.mark.parametrize(
    "params",
    [{"covariance": "constant"}, {"readout": "refit"}, {"transition": "unified", "max_epochs": 1}],
)
def test_far_rows_are_less_sure_with_every_path(iris, params):
    X, y = iris
    clf = calibrated(X, y, **params)
    sure = [clf.predict_proba(X * factor).max(1).mean() for factor in (1, 2, 10, 1000)]
    assert sure == sorted(sure, reverse=True)
    assert sure[-1] < 0.4


# Types


@pytest.fixture(scope="module")
def mixed():
    """Return a frame of numbers and text, and labels that need both."""
    rng = np.random.default_rng(0)
    n = 300
    X = pd.DataFrame(
        {
            "size": rng.normal(size=n).round(2),
            "count": rng.integers(0, 30, n).astype(float),
            "kind": rng.choice(["a", "b", "c"], size=n),
        }
    )
    y = np.where((X["size"] > 0) ^ (X["kind"] == "a"), "yes", "no")
    X.loc[::11, "kind"], X.loc[::7, "count"] = None, np.nan
    return X, y


@pytest.fixture(scope="module")
def of_mixed(mixed):
    return small(max_epochs=2).fit(*mixed)


@pytest.mark.parametrize("convert", [Decimal, np.float64, float])
def test_numbers_in_object_columns_are_numbers(mixed, of_mixed, convert):
    X, y = mixed
    X = X.assign(size=[convert(v) for v in X["size"]], count=X["count"].astype(object))
    X["size"] = X["size"].astype(object)
    clf = small(max_epochs=2).fit(X, y)
    np.testing.assert_array_equal(clf.predict_proba(X), of_mixed.predict_proba(mixed[0]))
    # numbers and objects may take turns
    np.testing.assert_array_equal(of_mixed.predict_proba(X), clf.predict_proba(mixed[0]))


def test_arrays_of_objects(mixed, of_mixed, iris):
    X, y = mixed
    clf = small(max_epochs=2).fit(X.to_numpy(dtype=object), y)
    np.testing.assert_array_equal(
        clf.predict_proba(X.to_numpy(dtype=object)), of_mixed.predict_proba(X)
    )
    numbers, labels = iris
    clf = small(max_epochs=1).fit(numbers.astype(object), labels)
    found = clf.predict_proba(numbers)
    np.testing.assert_array_equal(clf.predict_proba(numbers.astype(object)), found)
    np.testing.assert_array_equal(clf.predict_proba(numbers.astype(str).astype(object)), found)


@pytest.mark.parametrize("output", ["default", "pandas"])
def test_what_an_imputer_makes_of_a_mixed_frame(mixed, output):
    X, y = mixed
    fill = ColumnTransformer(
        [("all", SimpleImputer(strategy="most_frequent", missing_values=None), ["kind", "size"])],
        verbose_feature_names_out=False,
    ).set_output(transform=output)
    X = X.assign(kind=X["kind"].astype(object).where(X["kind"].notna(), None))
    pipeline = make_pipeline(fill, small(max_epochs=1)).fit(X, y)
    filled = X[["kind", "size"]].fillna(X["kind"].mode()[0])
    expected = small(max_epochs=1).fit(filled, y).predict_proba(filled)
    np.testing.assert_array_equal(pipeline.predict_proba(X), expected)


@pytest.mark.parametrize(
    "values",
    [
        ["1.5", "2.5", "1.5", "3.0"] * 5,
        [str(i) for i in range(20)],
        ["-1", "1"] * 10,
        ["1e3", None] * 10,
    ],
    ids=["decimals", "all different", "signs", "exponents"],
)
@pytest.mark.parametrize("dtype", ["str", object])
def test_numbers_as_text_are_refused_by_name(values, dtype):
    X = pd.DataFrame({"a": np.arange(20.0), "price": pd.Series(values, dtype=dtype)})
    with pytest.raises(ValueError, match=r"Column 'price' holds numbers written as text.*float"):
        small().fit(X, np.arange(20) % 2)
    categories = X.assign(price=X["price"].astype("category"))
    assert small(max_epochs=1).fit(categories, np.arange(20) % 2)._encoder.n_numeric == 1


def test_codes_as_text_are_categories_and_numbers_later_are_warned_of():
    rng = np.random.default_rng(0)
    codes = rng.integers(1, 6, 100)
    X = pd.DataFrame({"code": codes.astype(str), "a": rng.normal(size=100)})
    clf = small(max_epochs=15).fit(X, codes % 2)
    assert clf.score(X, codes % 2) > 0.9
    with pytest.warns(ColumnWarning, match="No value of column 'code' was seen.*as 1 where.*'1'"):
        clf.predict(X.assign(code=np.ones(100, dtype=int)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a", 1] * 10, "types number and str"),
        ([True, "a"] * 10, "types bool and str"),
        ([True, 1.5] * 10, "types bool and number"),
        ([datetime.date(2020, 1, 1)] * 20, "of type date.*days"),
        (pd.period_range("2020", periods=20, freq="D"), "of type Period.*days"),
        (pd.date_range("2020", periods=20, tz="UTC"), "of type Timestamp.*days"),
        ([[1], [2]] * 10, "of type list"),
        (pd.Categorical(["a", 1] * 10), "types number and str"),
        ([1j] * 20, "dtype complex128"),
    ],
    ids=[
        "str and int",
        "bool and str",
        "bool and float",
        "date",
        "Period",
        "Timestamp",
        "list",
        "categories",
        "complex",
    ],
)
def test_columns_that_are_neither_are_refused_by_name(values, message):
    X = pd.DataFrame({"a": np.arange(20.0), "odd one": values})
    with pytest.raises(ValueError, match=f"Column 'odd one' .*{message}"):
        small().fit(X, np.arange(20) % 2)


def test_a_column_of_numbers_stays_one(mixed, of_mixed):
    X, _ = mixed
    text = of_mixed.predict_proba(X.assign(size=X["size"].astype(str)))
    np.testing.assert_array_equal(text, of_mixed.predict_proba(X))
    with pytest.raises(ValueError, match="Column 'size' held numbers in fit, but could not.*'big'"):
        of_mixed.predict(X.assign(size="big"))
    with pytest.raises(ValueError, match=r"Column 'size' has dtype datetime64"):
        of_mixed.predict(X.assign(size=pd.Timestamp("2020-01-01")))


@pytest.mark.parametrize("kind", [None, pl.Categorical, pl.Enum(["a", "b", "c"])], ids=str)
def test_polars_frames_are_read_as_pandas_ones(mixed, of_mixed, kind):
    X, y = mixed
    frame = pl.DataFrame(
        {
            "size": X["size"].tolist(),
            "count": pl.Series([None if v != v else int(v) for v in X["count"]], dtype=pl.Int64),
            "kind": pl.Series([v if isinstance(v, str) else None for v in X["kind"]], dtype=kind),
        }
    )
    clf = small(max_epochs=2).fit(frame, y)
    expected = of_mixed.predict_proba(X)
    np.testing.assert_array_equal(clf.predict_proba(frame), expected)
    np.testing.assert_array_equal(of_mixed.predict_proba(frame), expected)
    np.testing.assert_array_equal(clf.predict_proba(X), expected)
    assert clf.feature_names_in_.tolist() == list(X.columns)
    with pytest.raises(ValueError, match="feature names"):
        clf.predict(frame.rename({"kind": "sort"}))
    with pytest.raises(ValueError, match="Column 'count' holds values of type ndarray"):
        clf.fit(frame.with_columns(pl.Series("count", [[1]] * 300)), y)


def test_polars_frames_are_calibrated(mixed):
    X, y = mixed
    frame = pl.DataFrame({"size": X["size"].tolist(), "count": X["count"].tolist()})
    found = calibrated(frame, y, small(max_epochs=1)).predict_proba(frame)
    numbers = X[["size", "count"]]
    np.testing.assert_array_equal(
        found, calibrated(numbers, y, small(max_epochs=1)).predict_proba(numbers)
    )


@pytest.mark.parametrize("missing", [None, np.nan])
def test_missing_numbers_in_an_array_of_objects_are_those_of_a_frame(iris, missing):
    X, y = iris
    array = X.astype(object)
    array[::7, 1] = missing
    frame = pd.DataFrame(X).mask(pd.isna(pd.DataFrame(array)))
    clf = small(max_epochs=2)
    expected = clf.fit(frame, y).predict_proba(frame)
    np.testing.assert_array_equal(clf.fit(array, y).predict_proba(array), expected)
