"""Image corruptions do what their name says, grow with the severity, and are reproducible."""

import numpy as np
import pytest
from scipy import ndimage

from sklearn_diffuq.datasets import corrupt_images

IMAGE_KINDS = ("noise", "blur", "rotate", "contrast", "translate")


@pytest.fixture
def images():
    """Smooth random images with a black margin."""
    noise = np.random.default_rng(0).random((40, 2, 20, 24))
    smooth = ndimage.gaussian_filter(noise, (0, 0, 2, 2))
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    smooth[:, :, [0, -1]] = smooth[:, :, :, [0, -1]] = 0
    return smooth


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_images_stay_images_and_repeat(images, kind):
    before = images.copy()
    corrupted = corrupt_images(images, kind, 4, random_state=3)
    assert corrupted.shape == images.shape
    assert corrupted.min() >= 0
    assert corrupted.max() <= 1
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(corrupted, corrupt_images(images, kind, 4, random_state=3))
    assert corrupt_images(images.astype(np.float32), kind).dtype == np.float32


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_images_are_hurt_more_with_the_severity(images, kind):
    distance = [
        np.abs(corrupt_images(images, kind, severity, random_state=0) - images).mean()
        for severity in range(1, 6)
    ]
    assert distance[0] > 0
    assert np.all(np.diff(distance) > 0)


def test_noise_has_the_stated_standard_deviation():
    grey = np.full((50, 1, 30, 30), 0.5)
    assert corrupt_images(grey, "noise", 1, random_state=0).std() == pytest.approx(0.08, rel=0.02)


def test_blur_spreads_one_pixel_as_a_gaussian():
    image = np.zeros((1, 1, 31, 31))
    image[0, 0, 15, 15] = 1
    blurred = corrupt_images(image, "blur", 5)[0, 0]
    assert blurred.sum() == pytest.approx(1)
    variance = (blurred.sum(0) * (np.arange(31) - 15) ** 2).sum()
    assert variance == pytest.approx(2.0**2, rel=0.05)


def test_rotation_turns_a_bar_by_the_stated_angle():
    bar = np.zeros((30, 1, 41, 41))
    bar[:, :, 20, 5:36] = 1
    rotated = corrupt_images(bar, "rotate", 4, random_state=0)[:, 0]
    y, x = np.mgrid[-20:21, -20:21]
    angle = 0.5 * np.arctan2(
        (2 * rotated * x * y).sum((1, 2)), (rotated * (x**2 - y**2)).sum((1, 2))
    )
    np.testing.assert_allclose(np.abs(np.degrees(angle)), 45, atol=1)
    assert len(set(np.sign(angle))) == 2


def test_translation_moves_without_wrapping():
    dot = np.zeros((60, 1, 28, 28))
    dot[:, :, 14, 14] = 1
    moved = corrupt_images(dot, "translate", 3, random_state=0)
    assert np.all(moved.sum((1, 2, 3)) == 1)
    position = np.argwhere(moved[:, 0] == 1)[:, 1:]
    np.testing.assert_allclose(np.linalg.norm(position - 14, axis=1), 0.14 * 28, atol=1)
    corner = np.zeros((60, 1, 28, 28))
    corner[:, :, 0, 0] = 1
    kept = corrupt_images(corner, "translate", 3, random_state=0)
    assert kept[:, :, 14:].sum() == kept[:, :, :, 14:].sum() == 0


@pytest.mark.parametrize(
    ("X", "kind", "severity", "message"),
    [
        (np.zeros((2, 1, 4, 4)), "fog", 3, "corruption must be one of.*'fog'"),
        (np.zeros((2, 1, 4, 4)), "blur", 6, "severity must be an int from 1 to 5, got 6"),
        (np.zeros((2, 1, 4, 4)), "blur", 2.5, "severity must be an int"),
        (np.zeros((2, 4, 4)), "blur", 3, "channel axis"),
        (np.full((2, 1, 4, 4), 255), "blur", 3, "Pixels must lie in"),
        (np.full((2, 1, 4, 4), np.nan), "blur", 3, "Pixels must lie in"),
    ],
)
def test_image_errors(X, kind, severity, message):
    with pytest.raises(ValueError, match=message):
        corrupt_images(X, kind, severity)
