"""A Gaussian posterior of a linear layer with a Kronecker-factored precision."""

from dataclasses import dataclass

import torch

from sklearn_diffuq.baselines._probit import probit_logits


@dataclass(frozen=True)
class KroneckerPosterior:
    """Gaussian of a bias-free linear layer, ``N(W, (B kron A + prior_precision I)^-1)``.

    Attributes
    ----------
    weight : Tensor of shape (n_classes, d + 1)
        Mean; the last column is the bias.
    output_values, output_vectors : Tensor of shape (n_classes,) and (n_classes, n_classes)
        Eigenvalues and eigenvectors (columns) of B.
    input_values, input_vectors : Tensor of shape (d + 1,) and (d + 1, d + 1)
        The same of A.
    prior_precision : float
    """

    weight: torch.Tensor
    output_values: torch.Tensor
    output_vectors: torch.Tensor
    input_values: torch.Tensor
    input_vectors: torch.Tensor
    prior_precision: float

    @property
    def tensors(self):
        """The tensors that a prediction uses."""
        return [
            self.weight,
            self.output_values,
            self.output_vectors,
            self.input_values,
            self.input_vectors,
        ]

    def moments(self, features):
        """Return mean and variance of the logits of features (n, d), both (n, n_classes)."""
        features = with_constant(features)
        precision = self.output_values[:, None] * self.input_values + self.prior_precision
        projected = (features @ self.input_vectors).square()
        variance = (projected @ (1 / precision).T) @ self.output_vectors.square().T
        return features @ self.weight.T, variance

    def logits(self, features):
        """Return the logits of the probit approximation of the mean probabilities."""
        return probit_logits(*self.moments(features))


def with_constant(features):
    """Return the features with a column of ones, for the bias."""
    return torch.cat([features, features.new_ones(len(features), 1)], 1)
