import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from sklearn_diffuq.metrics._temperature import (
    LOG_TEMPERATURE_BOUNDS,
    best_temperature,
    fit_temperature,
)


@pytest.mark.parametrize("temperature", [0.02, 0.7, 1.0, 9.0, 80.0])
def test_the_minimum_is_found_over_the_whole_range(temperature):
    found = best_temperature(lambda log_t: (log_t - np.log(temperature)) ** 2)
    assert isinstance(found, float)
    assert found == pytest.approx(temperature, rel=1e-5)


@pytest.mark.parametrize(("slope", "bound"), [(1, 1e-2), (-1, 1e2)])
def test_a_loss_without_minimum_gives_the_bound(slope, bound):
    assert np.exp(LOG_TEMPERATURE_BOUNDS) == pytest.approx([1e-2, 1e2])
    assert best_temperature(lambda log_t: slope * log_t) == pytest.approx(bound, rel=1e-4)


def test_two_classes_have_a_closed_form():
    # With the same prediction everywhere, the best probability is the frequency.
    log_proba = np.log([[0.9, 0.1]] * 4)
    found = fit_temperature(log_proba, np.array([0, 1, 0, 0]))
    assert found == pytest.approx(np.log(9) / np.log(3), rel=1e-5)


def test_the_temperature_behind_drawn_labels_is_found():
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=3, size=(20_000, 5))
    codes = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    found = fit_temperature(6 * logits, codes)
    assert found == pytest.approx(6, rel=0.03)
    samples = np.arange(len(codes))
    best, *others = (
        -np.log(softmax(6 * logits / t, axis=1)[samples, codes]).mean()
        for t in (found, 0.98 * found, 1.02 * found)
    )
    assert best < min(others)


def test_logits_and_their_log_probabilities_have_the_same_temperature():
    rng = np.random.default_rng(1)
    logits, codes = 3 * rng.normal(size=(500, 4)), rng.integers(4, size=500)
    of_log_proba = fit_temperature(log_softmax(logits, axis=1), codes)
    assert of_log_proba == pytest.approx(fit_temperature(logits, codes), rel=1e-5)
