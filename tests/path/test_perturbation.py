"""Perturbed embeddings: each kind, and what is left alone."""

import pytest
import torch

from sklearn_diffuq._path.perturbation import KINDS, Perturbation


def _perturbation(seed):
    return Perturbation(torch.Generator().manual_seed(seed))


def _embeddings(n=400):
    return torch.randn(n, 6, 5, generator=torch.Generator().manual_seed(0)) + 1


@pytest.mark.parametrize("kind", KINDS)
def test_strength_lies_between_its_bounds(kind, monkeypatch):
    index = list(KINDS).index(kind)
    monkeypatch.setattr(Perturbation, "_kinds", lambda self, n: torch.full((n,), index))
    h = _embeddings()
    change = _perturbation(0)(h) - h
    low, high = sorted(KINDS[kind])
    if kind == "noise":
        found = change.flatten(1).std(1)
    elif kind == "drop":
        assert torch.all(change[:, 0] == 0)
        found = (change[:, 1:].abs().sum(2) > 0).double().mean(1)
        assert found.mean() == pytest.approx((low + high) / 2, abs=0.05)
        return
    else:  # towards other rows, or their mean
        mean = h.flatten(0, 1).mean(0)
        slope = ((h + change - mean) * (h - mean)).sum((1, 2)) / (h - mean).square().sum((1, 2))
        found = 1 - slope if kind == "mix" else slope
    assert found.min() > low - 0.4 * (kind != "contrast") - 0.05
    assert found.max() < high + 0.4 * (kind != "contrast") + 0.05
    assert found.mean() == pytest.approx((low + high) / 2, abs=0.05)


def test_padding_stays_and_does_not_count():
    h = _embeddings(8)
    mask = torch.ones(8, 6, dtype=torch.bool)
    mask[:, 4:] = False
    other = h.clone()
    other[:, 4:] = 1e6
    changed, also = _perturbation(3)(h, mask), _perturbation(3)(other, mask)
    assert torch.equal(changed[:, 4:], h[:, 4:])
    assert not torch.equal(changed[:, :4], h[:, :4])
    kept = (also[:, :4] - changed[:, :4]).abs().amax((1, 2)) < 1e-3
    assert kept.sum() >= 6  # rows mixed with another row take its tokens as they are


def test_the_same_seed_perturbs_alike():
    h = _embeddings(20)
    assert torch.equal(_perturbation(1)(h), _perturbation(1)(h))
    assert not torch.equal(_perturbation(1)(h), _perturbation(2)(h))
