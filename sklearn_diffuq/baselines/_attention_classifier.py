"""What the rivals with a Gaussian-process attention share."""

from abc import abstractmethod

import numpy as np
import torch
from torch.nn import functional as F

from sklearn_diffuq._backbones.backbone import stream
from sklearn_diffuq._training.seeds import own_torch_seed
from sklearn_diffuq.baselines._base import SamplingClassifier, count_parameters
from sklearn_diffuq.baselines._finetuning import fine_tune, trainable_copy
from sklearn_diffuq.baselines._replaced_attention import replace_attention

_START_ROWS = 64  # training rows from which a new attention takes its start


class AttentionClassifier(SamplingClassifier):
    """Replace the attention of the last blocks of a copy, fine-tune it, and average samples.

    A subclass has the parameters `n_layers`, `n_samples` and `kl_weight`, and writes `_attention`.
    """

    @abstractmethod
    def _attention(self, projections, seed, rng):
        """Return the `GaussianAttention` that starts from given `Projections`."""

    def _fit(self, training, held_out, seed):
        self._backbone, _ = trainable_copy(self.wrapped_.backbone_)
        device = next(self._backbone.module.parameters()).device
        rng = np.random.default_rng(seed)
        rows = rng.permutation(len(training))[:_START_ROWS]
        with own_torch_seed(seed, device):
            self._attentions = replace_attention(
                self._backbone,
                self.n_layers,
                training.inputs.batch(rows, device=device),
                lambda projections, k: self._attention(projections, (seed + k) % 2**32, rng),
            )
        roots = [self._backbone.module, self._backbone.custom_readout]
        modules = torch.nn.ModuleList([root for root in roots if root is not None])

        def losses(batch, y):
            return F.cross_entropy(self._backbone.logits(batch).float(), y, reduction="none")

        def scores(batch, y):
            log_p = torch.log_softmax(self._samples(batch), 2)
            picked = log_p.gather(2, y[:, None, None].expand(-1, self.n_samples, 1))[..., 0]
            return np.log(self.n_samples) - torch.logsumexp(picked, 1)

        self.history_ = fine_tune(
            self,
            modules,
            losses,
            training,
            held_out,
            seed,
            penalty=lambda: self._penalty(len(training)),
            scores=scores,
        )
        self.n_parameters_ = count_parameters(self._backbone)
        # The blocks below the replaced ones are the same in all samples.
        share = len(self._attentions) / self._backbone.n_blocks
        self.n_passes_ = 1 + (self.n_samples - 1) * share

    def _penalty(self, n):
        """Return what is added to the mean loss of `n` training rows."""
        # a row bears its own part, and an equal share of what all rows have in common
        divergences = (attention.divergence for attention in self._attentions)
        return self.kl_weight * sum(own + common / n for own, common in divergences)

    def _samples(self, batch):
        """Return the logits of all samples, (n, K, n_classes)."""
        first = self._backbone.n_blocks - len(self._attentions)
        start, context = self._backbone.embed(batch)
        for k in range(first):
            start = self._backbone.block(k, start, context)
        samples = []
        for sample in range(self.n_samples):
            for attention in self._attentions:
                attention.sample = sample
            h = start
            for k in range(first, self._backbone.n_blocks):
                h = self._backbone.block(k, h, context)
            samples.append(self._backbone.readout(h, context))
        return torch.stack(samples, 1)

    def _sample_logits(self, X):
        inputs = self.wrapped_.encode(X)
        return stream(self._backbone, inputs, self._samples, self.wrapped_._n_tokens)
