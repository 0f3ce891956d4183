import numpy as np
import pytest


@pytest.fixture(scope="package")
def problem():
    """3000 over-confident forecasts of 4 classes: labels drawn from p, forecasts p**2 / sum."""
    rng = np.random.default_rng(0)
    proba = rng.dirichlet([1, 1, 1, 1], size=3000)
    y = (proba.cumsum(axis=1) < rng.random((3000, 1))).sum(axis=1)
    forecast = proba**2
    return y, forecast / forecast.sum(axis=1, keepdims=True)


@pytest.fixture(scope="package")
def binary_problem():
    """2000 over-confident forecasts of class 1 of 2."""
    rng = np.random.default_rng(1)
    logit = rng.normal(0, 1.5, 2000)
    y = (rng.random(2000) < 1 / (1 + np.exp(-logit))).astype(int)
    return y, 1 / (1 + np.exp(-2 * logit))


@pytest.fixture
def plt():
    """Pyplot; all figures are drawn, which reveals layout errors, and closed after the test."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    yield pyplot
    for number in pyplot.get_fignums():
        pyplot.figure(number).canvas.draw()
    pyplot.close("all")
