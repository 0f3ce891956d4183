import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss
from sklearn.model_selection import KFold

from sklearn_diffuq.metrics import calibration_refinement_decomposition


def one_by_one(y, proba, loss):
    if loss == "log_loss":
        return log_loss(y, proba, labels=range(proba.shape[1]))
    return brier_score_loss(y, proba, labels=range(proba.shape[1]), scale_by_half=False)


@pytest.mark.parametrize("loss", ["log_loss", "brier"])
def test_over_confidence_is_all_of_the_calibration_error(problem, loss):
    y, forecast = problem
    truth = np.sqrt(forecast)
    truth /= truth.sum(axis=1, keepdims=True)
    parts = calibration_refinement_decomposition(y, forecast, loss=loss)
    assert parts.total == pytest.approx(one_by_one(y, forecast, loss))
    assert parts.total == pytest.approx(parts.calibration + parts.refinement, abs=1e-15)
    assert parts.refinement == pytest.approx(one_by_one(y, truth, loss), abs=2e-3)
    assert parts.calibration > 0.03
    assert_allclose(parts.temperatures, 2, atol=0.1)
    calibrated = calibration_refinement_decomposition(y, truth, loss=loss)
    assert calibrated.calibration == pytest.approx(0, abs=2e-3)
    assert calibrated.refinement == pytest.approx(parts.refinement, abs=3e-3)
    assert_allclose(calibrated.temperatures, 1, atol=0.05)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 8])
def test_temperature_is_found_however_far(problem, temperature):
    y, forecast = problem
    log_forecast = temperature / 2 * np.log(forecast)  # those of the truth, times T
    wrong = np.exp(log_forecast - log_forecast.max(axis=1, keepdims=True)).clip(1e-300)
    wrong /= wrong.sum(axis=1, keepdims=True)
    keep = wrong.min(axis=1) > 1e-15  # what is left above the clipping of the log loss
    parts = calibration_refinement_decomposition(y[keep], wrong[keep], cv=3)
    assert_allclose(parts.temperatures, temperature, rtol=0.25)


def test_temperature_is_the_one_of_scikit_learn(problem):
    y, forecast = problem

    class Logits(LogisticRegression):
        def decision_function(self, X):
            return X

    logits = np.log(forecast)
    fitted = Logits().fit(logits, y)
    calibrated = CalibratedClassifierCV(FrozenEstimator(fitted), method="temperature")
    calibrator = calibrated.fit(logits, y).calibrated_classifiers_[0].calibrators[0]
    everything = np.arange(len(y))
    parts = calibration_refinement_decomposition(y, forecast, cv=[(everything, everything)])
    assert 1 / parts.temperatures[0] == pytest.approx(calibrator.beta_, rel=1e-4)


def test_formula_on_a_held_out_split(problem):
    y, forecast = problem
    fit, test = np.arange(2000), np.arange(2000, 3000)
    parts = calibration_refinement_decomposition(y, forecast, cv=[(fit, test)])
    [temperature] = parts.temperatures
    scaled = forecast[test] ** (1 / temperature)
    scaled /= scaled.sum(axis=1, keepdims=True)
    mixed = (2000 * scaled + 1 / 4) / 2001
    assert parts.total == pytest.approx(log_loss(y[test], forecast[test]))
    assert parts.refinement == pytest.approx(log_loss(y[test], mixed))
    for other in (temperature * 1.02, temperature / 1.02):
        worse, best = forecast[fit] ** (1 / other), forecast[fit] ** (1 / temperature)
        worse, best = (p / p.sum(axis=1, keepdims=True) for p in (worse, best))
        assert log_loss(y[fit], best) < log_loss(y[fit], worse)


def test_integer_folds_do_not_depend_on_row_order_or_names(problem):
    y, forecast = problem
    y, forecast = y[:200], forecast[:200]
    order = np.random.default_rng(1).permutation(200)
    names = np.array(["a", "b", "c", "d"])
    first = calibration_refinement_decomposition(y, forecast)
    second = calibration_refinement_decomposition(names[y[order]], forecast[order])
    assert_array_equal(first.temperatures, second.temperatures)
    assert first.refinement == second.refinement
    default = calibration_refinement_decomposition(y, forecast, cv=None)
    assert default.refinement == first.refinement


def test_splitters_are_honoured(problem):
    y, forecast = problem
    splitter = KFold(3)
    parts = calibration_refinement_decomposition(y, forecast, cv=splitter)
    pairs = calibration_refinement_decomposition(y, forecast, cv=list(splitter.split(y)))
    assert parts.temperatures.shape == (3,)
    assert_array_equal(parts.temperatures, pairs.temperatures)


@pytest.mark.parametrize("loss", ["log_loss", "brier"])
def test_saturated_forecasts_stay_finite(loss):
    y = np.tile([0, 1], 50)
    proba = np.eye(2)[y]
    perfect = calibration_refinement_decomposition(y, proba, loss=loss)
    assert perfect.total == 0
    assert 0 <= perfect.refinement < 0.05
    y[0] = 1 - y[0]
    one_error = calibration_refinement_decomposition(y, proba, loss=loss)
    assert np.isfinite(list(one_error.temperatures)).all()
    assert 0 < one_error.refinement < 0.5
    assert one_error.total == pytest.approx(one_by_one(y, proba, loss))


def test_float32_is_clipped_as_in_scikit_learn():
    y = np.tile([0, 1], 20)
    proba = np.eye(2, dtype=np.float32)[y]
    y[0] = 1
    assert calibration_refinement_decomposition(y, proba).total == pytest.approx(log_loss(y, proba))


def test_binary_column(binary_problem):
    y, p = binary_problem
    parts = calibration_refinement_decomposition(np.where(y, "yes", "no"), p)
    columns = calibration_refinement_decomposition(y, np.column_stack([1 - p, p]))
    assert parts.total == columns.total
    assert_array_equal(parts.temperatures, columns.temperatures)
    assert_allclose(parts.temperatures, 2, atol=0.3)
