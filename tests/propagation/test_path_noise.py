"""The draws of sampled paths."""

import numpy as np
import pytest
import torch

from sklearn_diffuq._propagation.path_noise import PathNoise


@pytest.mark.parametrize("n_paths", [1, 2, 5, 16])
def test_noise_is_antithetic_and_does_not_depend_on_length(n_paths):
    noise = PathNoise(n_paths, 2, 3, 4, seed=1)
    assert noise.shared.shape == (n_paths, 2, 3)
    half = (n_paths + 1) // 2
    assert torch.equal(noise.shared[half:], -noise.shared[: n_paths - half])
    long, short = noise.tokens(1, 70), PathNoise(n_paths, 2, 3, 4, seed=1).tokens(1, 9)
    assert torch.equal(long[:, :9], short)
    assert torch.equal(long[half:], -long[: n_paths - half])
    assert not torch.equal(noise.tokens(0, 9), short)


def test_token_noise_is_standard_normal():
    x = PathNoise(64, 1, 1, 32, seed=0).tokens(0, 96)[:32].double()
    assert abs(float(x.mean())) < 0.01
    assert float(x.std()) == pytest.approx(1, abs=0.01)
    assert float((x[:, :32] * x[:, 32:64]).mean()) == pytest.approx(0, abs=0.02)


def test_shared_noise_fills_the_space_evenly():
    x = PathNoise(512, 2, 2, 1, seed=0).shared.flatten(1).double()
    uniform = torch.special.ndtr(x)
    even = np.histogram(uniform[:, 0], bins=16, range=(0, 1))[0]
    np.testing.assert_array_equal(even, 32)  # pseudo-random draws would scatter by about 6
    torch.testing.assert_close(x.T @ x / 512, torch.eye(4).double(), atol=0.1, rtol=0)
    assert torch.all(x.mean(0).abs() < 1e-7)


def test_other_draws_are_as_many_and_the_same_for_the_same_index():
    noise = PathNoise(6, 2, 3, 4, seed=1)
    other, again, third = noise.redrawn(0), noise.redrawn(0), noise.redrawn(1)
    assert other.shared.shape == noise.shared.shape
    for draws in (lambda x: x.shared, lambda x: x.tokens(1, 9)):
        assert torch.equal(draws(other), draws(again))
        assert not torch.equal(draws(other), draws(noise))
        assert not torch.equal(draws(other), draws(third))


def test_without_directions_there_is_no_shared_noise():
    noise = PathNoise(4, 3, 0, 2, seed=0)
    assert noise.shared.shape == (4, 3, 0)
    assert noise.tokens(0, 5).shape == (4, 5, 2)
