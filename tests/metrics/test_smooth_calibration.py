import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sklearn_diffuq.metrics import smooth_calibration_error


def wave(n, power):
    """Deterministic forecasts p and outcomes with frequency about p**power."""
    i = np.arange(n)
    p = 0.01 + 0.49 * (1 + np.sin(12.9898 * i))
    return (np.modf(0.6180339887498949 * i)[0] < p**power).astype(int), p


def dense_error(confidence, outcome, width):
    """The defining integral at one width, with a kernel reflected many times and no grid."""
    t = np.linspace(0, 1, 1001)
    excess = np.zeros_like(t)
    for shift in range(-6, 7, 2):
        for sign in (-1, 1):
            distance = (t[:, None] - shift - sign * confidence) / width
            excess += np.exp(-(distance**2) / 2) @ (confidence - outcome)
    excess /= width * np.sqrt(2 * np.pi) * len(confidence)
    return np.trapezoid(abs(excess), t)


@pytest.mark.parametrize(
    ("n", "power", "value"),
    # From relplot 1.0.3, smECE(f=p, y=y).
    [
        (1, 1.0, 0.49992718067855363),
        (12, 2.0, 0.11123927891648855),
        (400, 1.0, 0.039046947564025374),
        (400, 3.0, 0.18470445581334605),
        (4000, 1.0, 0.02014963803497571),
    ],
)
def test_values_of_the_authors_implementation(n, power, value):
    y, p = wave(n, power)
    error = smooth_calibration_error(y, p, labels=[0, 1], kind="positive")
    assert error == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("power", [0.5, 1.0, 1.5])
def test_is_the_fixed_point_of_the_defining_integral(power):
    y, p = wave(300, power)
    error = smooth_calibration_error(y, p, kind="positive")
    assert dense_error(p, y, error) == pytest.approx(error, abs=2e-3)
    assert dense_error(p, y, error / 2) > error / 2
    assert dense_error(p, y, min(2 * error, 1)) < 2 * error


def test_constant_gap_is_found_whole():
    proba = np.tile([0.7, 0.2, 0.1], (1000, 1))
    y = np.repeat([0, 1], [400, 600])
    error = smooth_calibration_error(y, proba, labels=[0, 1, 2])
    assert error == pytest.approx(0.3, abs=1e-3)


def test_top_label_is_the_default(problem, binary_problem):
    y, proba = problem
    correct = (proba.argmax(axis=1) == y).astype(int)
    error = smooth_calibration_error(y, proba)
    positive = smooth_calibration_error(correct, proba.max(axis=1), kind="positive")
    assert error == pytest.approx(positive, abs=1e-12)
    y, p = binary_problem
    columns = np.column_stack([1 - p, p])
    assert smooth_calibration_error(y, p) == smooth_calibration_error(y, columns)
    assert smooth_calibration_error(y, p) != smooth_calibration_error(y, p, kind="positive")


def test_calibrated_forecasts_score_less(problem):
    y, forecast = problem
    calibrated = np.sqrt(forecast)
    calibrated /= calibrated.sum(axis=1, keepdims=True)
    assert smooth_calibration_error(y, calibrated) < 0.03
    assert smooth_calibration_error(y, forecast) > 0.1


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4)), min_size=1, max_size=20), st.data()
)
def test_bounded_and_blind_to_row_order(rows, data):
    y, p = np.array(rows).T
    p = p / 4
    order = data.draw(st.permutations(range(len(y))))
    options = {"labels": [0, 1], "kind": "positive"}
    error = smooth_calibration_error(y, p, **options)
    assert 0 <= error <= 1
    assert error == smooth_calibration_error(y[order], p[order], **options)
