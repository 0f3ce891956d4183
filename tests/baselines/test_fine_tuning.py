import pytest
import torch
from tiny_backbones import vit
from torch.distributions import MultivariateNormal, kl_divergence

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq.baselines._backbone_modules import count_parameters, modules_of
from sklearn_diffuq.baselines._fine_tuning import trainable_copy
from sklearn_diffuq.baselines._gaussian_attention import (
    covariance_excess,
    initial_factor,
    lower_triangle,
)


@pytest.fixture
def frozen():
    """Return a backbone with a separate readout, nothing of which is to be trained."""
    backbone, batch = vit()
    found = Backbone(backbone.module, readout=torch.nn.Linear(16, 3)).probe(batch)
    for parameter in modules_of(found).parameters():
        parameter.requires_grad_(False)
    return found


def test_a_copy_can_be_trained_and_leaves_the_original_alone(frozen):
    copy = trainable_copy(frozen)
    assert all(p.requires_grad for p in modules_of(copy).parameters())
    assert not any(p.requires_grad for p in modules_of(frozen).parameters())
    torch.nn.init.zeros_(copy.custom_readout.weight)
    assert frozen.custom_readout.weight.any()


def test_shared_parameters_count_once(frozen):
    own = sum(p.numel() for p in frozen.module.parameters())
    assert count_parameters([frozen]) == own + 16 * 3 + 3
    other = Backbone(frozen.module)  # shares the model, without the readout
    extra = torch.nn.Linear(2, 5), torch.zeros(7)
    assert count_parameters([frozen, other], *extra) == own + 16 * 3 + 3 + 15 + 7


def test_the_excess_is_twice_a_divergence():
    factor = initial_factor(2, 3, 4, torch.zeros(1, dtype=torch.float64))
    factor = factor + 0.3 * torch.randn(factor.shape, dtype=torch.float64)
    triangle = lower_triangle(factor)
    prior = MultivariateNormal(torch.zeros(4).double(), torch.eye(4).double())
    posterior = MultivariateNormal(torch.zeros(4).double(), scale_tril=triangle)
    expected = 2 * kl_divergence(posterior, prior).sum()
    torch.testing.assert_close(covariance_excess(factor, triangle), expected)
