"""What the baselines with Gaussian process attention share."""

from abc import abstractmethod

import numpy as np
import torch

from sklearn_diffuq._inputs.rows import check_n_samples
from sklearn_diffuq._training.classification import cross_entropy
from sklearn_diffuq._training.seeds import own_torch_seed
from sklearn_diffuq.baselines._backbone_modules import count_parameters
from sklearn_diffuq.baselines._base import SamplingClassifier
from sklearn_diffuq.baselines._fine_tuning import fine_tune, trainable_copy
from sklearn_diffuq.baselines._replaced_attention import replace_attention

_START_ROWS = 64  # training rows that initialise a new attention


class AttentionClassifier(SamplingClassifier):
    """Replace the attention of the last blocks of a copy, fine-tune it, and average samples.

    Subclasses have the parameters `n_layers`, `n_samples` and `kl_weight`, and implement
    `_attention`.
    """

    @abstractmethod
    def _attention(self, projections, seed, rng):
        """Return a `GaussianAttention` initialised from `Projections`."""

    def _fit(self, training, held_out, seed):
        self._backbone = trainable_copy(self.wrapped_.backbone_)
        device = self._backbone.device
        rng = np.random.default_rng(seed)
        rows = rng.permutation(len(training))[:_START_ROWS]
        with own_torch_seed(seed, device):
            self._attentions = replace_attention(
                self._backbone,
                self.n_layers,
                training.inputs.batch(rows, device=device),
                lambda projections, k: self._attention(projections, (seed + k) % 2**32, rng),
            )

        def scores(batch, y):
            log_p = torch.log_softmax(self._samples(batch), 2)
            picked = log_p.gather(2, y[:, None, None].expand(-1, self.n_samples, 1))[..., 0]
            return np.log(self.n_samples) - torch.logsumexp(picked, 1)

        self.history_ = fine_tune(
            self,
            self._backbone,
            cross_entropy(self._backbone.logits),
            training,
            held_out,
            seed,
            penalty=lambda: self._penalty(len(training)),
            scores=scores,
        )
        self.n_parameters_ = count_parameters([self._backbone])
        # The blocks below the replaced ones are the same in all samples.
        share = len(self._attentions) / self._backbone.n_blocks
        self.n_passes_ = 1 + (self.n_samples - 1) * share

    def _penalty(self, n):
        """Return the term added to the mean loss of `n` training rows."""
        # each row pays for its own part and for 1 / n of the part that all rows share
        divergences = (attention.divergence for attention in self._attentions)
        return self.kl_weight * sum(own + common / n for own, common in divergences)

    def _samples(self, batch):
        """Return the logits of all samples, (n, K, n_classes)."""
        backbone, first = self._backbone, self._backbone.n_blocks - len(self._attentions)
        start, context = backbone.embed(batch)
        start = backbone.advance(start, context, stop=first)
        samples = []
        for sample in range(check_n_samples(self.n_samples)):
            for attention in self._attentions:
                attention.sample = sample
            samples.append(backbone.readout(backbone.advance(start, context, first), context))
        return torch.stack(samples, 1)

    def _sample_logits(self, X):
        return self._backbone.map_rows(self._samples, self.wrapped_.encode(X))
