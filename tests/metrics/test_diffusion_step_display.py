import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from sklearn_diffuq.metrics import DiffusionStepDisplay


def band_at(band, x):
    corners = band.get_paths()[0].vertices
    values = corners[corners[:, 0] == x, 1]
    return values.min(), values.max()


def test_steps_are_sorted_and_repeats_averaged(plt):
    scores = [[0.3, 0.5], [0.7, 0.9]]
    display = DiffusionStepDisplay.from_predictions(
        [8, 2], scores, score_name="Log loss", reference=0.45, name="unified"
    )
    assert_array_equal(display.line_.get_xdata(), [2, 8])
    assert_allclose(display.line_.get_ydata(), [0.8, 0.4])
    assert_allclose(band_at(display.band_, 8), 0.4 + np.array([-1, 1]) * np.sqrt(0.02))
    assert display.ax_.get_ylabel() == "Log loss"
    texts = [t.get_text() for t in display.ax_.get_legend().get_texts()]
    assert texts == ["unified", "Wrapped model"]


def test_steps_without_repeats_have_no_band(plt):
    display = DiffusionStepDisplay([1, 2, 4], [0.5, 0.4, 0.3]).plot()
    assert display.band_ is None
    assert display.ax_.get_legend() is None


def test_reference_is_drawn_once(plt):
    first = DiffusionStepDisplay.from_predictions([1, 2], [3, 2], reference=2.5, name="a")
    DiffusionStepDisplay.from_predictions([1, 2], [4, 2], reference=2.5, name="b", ax=first.ax_)
    texts = [t.get_text() for t in first.ax_.get_legend().get_texts()]
    assert texts.count("Wrapped model") == 1


@pytest.mark.parametrize("scores", [[1, 2], np.ones((3, 2, 2)), 1.0])
def test_steps_refuse_other_shapes(scores):
    with pytest.raises(ValueError, match="one row per number of steps"):
        DiffusionStepDisplay([1, 2, 4], scores).plot()
