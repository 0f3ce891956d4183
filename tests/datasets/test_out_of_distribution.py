"""Out-of-distribution images keep their shape and change as their name says."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from sklearn_diffuq.datasets import out_of_distribution_images

KINDS = ("digits", "inverted", "shuffled", "blank", "saturated", "letters", "photographs")


@pytest.fixture
def images():
    return np.random.default_rng(0).random((6, 3, 28, 28)).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_shape_range_and_repetition(images, kind):
    made = out_of_distribution_images(images, kind, random_state=0)
    assert made.shape == images.shape
    assert made.dtype == np.float32
    assert made.min() >= 0
    assert made.max() <= 1
    np.testing.assert_array_equal(made, out_of_distribution_images(images, kind, random_state=0))


def test_digits_are_enlarged_digits():
    made = out_of_distribution_images(np.zeros((2000, 1, 24, 16)), "digits", random_state=0)
    digits = load_digits().images / 16
    # Digits repeat only after all were used; linear interpolation keeps the corners.
    corners = np.sort(made[: len(digits), 0, -1, -1])
    np.testing.assert_allclose(corners, np.sort(digits[:, -1, -1]), atol=1e-12)
    assert made.mean() == pytest.approx(digits.mean(), rel=0.1)


def test_inverted_twice_is_the_image(images):
    inverted = out_of_distribution_images(images, "inverted")
    np.testing.assert_allclose(images + inverted, 1, atol=1e-6)


def test_shuffled_keeps_pixels_and_channels_together(images):
    shuffled = out_of_distribution_images(images, "shuffled", random_state=0)
    for a, b in zip(images, shuffled, strict=True):
        before, after = a.reshape(3, -1).T, b.reshape(3, -1).T
        assert not np.array_equal(before, after)
        np.testing.assert_array_equal(before[before[:, 0].argsort()], after[after[:, 0].argsort()])


def test_constant_images(images):
    assert np.all(out_of_distribution_images(images, "blank") == 0)
    assert np.all(out_of_distribution_images(images, "saturated") == 1)


@pytest.mark.parametrize("shape", [(28, 28), (9, 14)])
@pytest.mark.parametrize("kind", ["letters", "photographs"])
def test_images_of_something_differ_and_have_contrast(kind, shape):
    made = out_of_distribution_images(np.zeros((40, 2, *shape)), kind, random_state=0)
    assert made.shape == (40, 2, *shape)
    assert np.array_equal(made[:, 0], made[:, 1])
    assert len(np.unique(made.reshape(40, -1), axis=0)) > 30
    assert np.mean(made.std(axis=(1, 2, 3)) > 0.05) > 0.6  # some show the sky


def test_errors(images):
    with pytest.raises(ValueError, match="kind must be one of.*got 'svhn'"):
        out_of_distribution_images(images, "svhn")
    with pytest.raises(ValueError, match="Pixels must lie in"):
        out_of_distribution_images(images * 255, "digits")
