import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from sklearn_diffuq.baselines._variational import VariationalHead


@pytest.fixture
def head():
    head = VariationalHead(4, 3, 2).double()
    torch.nn.init.normal_(head.log_variance.weight)
    return head


def test_the_loss_is_minus_the_evidence_lower_bound(head):
    features, target = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1, 0])
    latent = Normal(head.mean(features), head.log_variance(features).div(2).exp())
    divergence = kl_divergence(latent, Normal(0.0, 1.0)).sum(1)
    draws = latent.sample((50_000,))
    log_p = F.log_softmax(head.readout(draws), -1)
    expected = -log_p[:, range(6), target].mean(0) + 0.7 * divergence
    generator = torch.Generator().manual_seed(0)
    found = [
        head.losses(features.repeat(1000, 1), target.repeat(1000), 0.7, generator=generator)
        .view(1000, 6)
        .mean(0)
        for _ in range(30)
    ]
    torch.testing.assert_close(torch.stack(found).mean(0), expected, atol=0.03, rtol=0)


def test_samples_share_their_noise_over_rows(head):
    features, noise = torch.randn(6, 4, dtype=torch.float64), torch.randn(5, 3).double()
    logits = head(features, noise)
    for i in range(6):
        for k in range(5):
            deviation = head.log_variance(features[i]).exp().sqrt()
            latent = head.mean(features[i]) + deviation * noise[k]
            torch.testing.assert_close(logits[i, k], head.readout(latent))


def test_the_best_epoch_is_kept(images, fitted):
    clf = fitted("VariationalLastLayerClassifier")
    assert min(row["valid_loss"] for row in clf.history_) < clf.history_[0]["valid_loss"]
    proba = clf.predict_proba(images.X_test)
    assert np.log(proba[np.arange(130), np.searchsorted(clf.classes_, images.y_test)]).mean() > -0.5
