import pytest
import torch

from sklearn_diffuq.baselines._probit import probit_logits


@pytest.mark.parametrize(("mean", "variance"), [(0.5, 0.3), (-1.0, 4.0), (2.0, 9.0)])
def test_two_classes_against_monte_carlo(mean, variance):
    """For two logits (0, z) with Gaussian z, the mean of sigmoid(z)."""
    logits = probit_logits(torch.tensor([[0.0, mean]]), torch.tensor([[0.0, variance]]))
    draws = mean + variance**0.5 * torch.randn(200_000)
    expected = torch.sigmoid(draws).mean()
    assert torch.softmax(logits, 1)[0, 1].item() == pytest.approx(expected.item(), abs=0.02)


def test_without_variance_nothing_changes():
    mean = torch.randn(4, 3)
    assert torch.equal(probit_logits(mean, torch.zeros(4, 3)), mean)
