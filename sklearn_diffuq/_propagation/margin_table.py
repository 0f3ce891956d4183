"""Covariances of the logits of new rows, looked up by their margins."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sklearn_diffuq._path.covariance import NoiseScales
from sklearn_diffuq._path.distance import widening
from sklearn_diffuq._propagation.linearised import LinearisedPath, draw_logits
from sklearn_diffuq._state import State

N_NEIGHBOURS = 16  # held-out rows that a new row takes the mean of; the farthest only tells how far


@dataclass(frozen=True)
class MomentTable:
    """Covariances of logits by their margins.

    How much the noise of the path moves the logits of a row depends on little but its margins:
    what saturates the output saturates the noise. The covariance of a new row is therefore the
    weighted mean over the held-out rows nearest to it in margin, class names left aside.

    Attributes
    ----------
    margins : Tensor of shape (m, k - 1)
        Differences of the second, third .. largest logit to the largest.
    covariance : Tensor of shape (m, k, k)
        Of the logits, the largest first, where the distance to the training data is zero.
    """

    margins: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, law: LinearisedPath, scales: NoiseScales) -> "MomentTable":
        """Make the table of linearised held-out rows under `scales`."""
        growth = widening(2 * scales.distance, law.distance)[:, None, None]
        covariance = law.covariance(scales.shared, scales.token, scales.distance)
        return cls(_margins(law.logits, law.top), covariance / growth)

    def to_state(self) -> State:
        """Return margins and covariances."""
        return State({}, {"margins": self.margins, "covariance": self.covariance})

    @classmethod
    def from_state(cls, state: State) -> "MomentTable":
        """Build the table that `to_state` described."""
        return cls(**state.tensors)

    def sample(self, logits: Tensor, growth: Tensor, z: Tensor) -> Tensor:
        """Draw logits (K, n, n_classes) of new rows (eq. 6.2).

        Parameters
        ----------
        logits : Tensor of shape (n, n_classes)
            Of the mean path.
        growth : Tensor of shape (n,)
            Factor of the variance by the distance to the training data.
        z : Tensor of shape (K, k)
            Standard normals.
        """
        logits = logits.double()
        top = logits.topk(self.covariance.shape[1]).indices
        # Without a matrix product, whose last bits depend on a row's place in the batch.
        exact = "donot_use_mm_for_euclid_dist"
        distance = torch.cdist(_margins(logits, top), self.margins, compute_mode=exact)
        nearest = distance.topk(min(N_NEIGHBOURS, len(self.margins)), largest=False)
        radius = nearest.values[:, -1:] * (1 + 1e-6) + 1e-12
        weight = 1 - (nearest.values / radius).square()
        weight = (weight / weight.sum(1, keepdim=True))[..., None, None]
        covariance = (weight * self.covariance[nearest.indices]).sum(1)
        return draw_logits(logits, top, covariance * growth.double()[:, None, None], z)


def _margins(logits: Tensor, top: Tensor) -> Tensor:
    ordered = logits.gather(1, top)
    return ordered[:, 1:] - ordered[:, :1]
