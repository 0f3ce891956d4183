"""Stage 5: copies of held-out rows that are unlike the training data, made at the embedding.

Rows like the training data cannot tell how much to doubt rows that are not. These copies can: they
keep their label and lose some of what it is known by. Nothing here knows what the inputs are.
"""

import torch

# Each row gets one of these with a strength between the two.
KINDS = {
    "noise": (0.2, 1.0),  # standard deviation, in units of the channel's own
    "drop": (0.1, 0.6),  # share of the tokens that become the mean token; the first stays
    "mix": (0.1, 0.4),  # weight of another row
    "contrast": (0.7, 0.3),  # factor on the distance to the mean of the rows
}


class Perturbation:
    """Perturb embeddings, another way for each row.

    Parameters
    ----------
    seed : int
    """

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, h, mask=None):
        """Return perturbed copies of the embeddings `h` (n, t, d); padding is left alone."""
        real = torch.ones(h.shape[:2], dtype=torch.bool) if mask is None else mask.cpu()
        tokens = h.cpu()[real]
        mean, std = tokens.mean(0), tokens.std(0, correction=0)
        n = len(h)
        kind = self._kinds(n)
        at = torch.rand(n, generator=self.generator)
        low, high = torch.tensor(list(KINDS.values())).T
        strength = (low[kind] + at * (high - low)[kind])[:, None, None]
        h0 = h.cpu()
        noisy = h0 + strength * std * torch.randn(h.shape, generator=self.generator)
        dropped = torch.rand(h.shape[:2], generator=self.generator)[..., None] < strength
        dropped[:, 0] = False
        other = h0[torch.randperm(n, generator=self.generator)]
        made = torch.stack(
            [
                noisy,
                torch.where(dropped, mean, h0),
                (1 - strength) * h0 + strength * other,
                mean + strength * (h0 - mean),
            ]
        )
        changed = made[kind, torch.arange(n)]
        return torch.where(real[..., None], changed, h0).to(h)

    def _kinds(self, n):
        return torch.randint(len(KINDS), (n,), generator=self.generator)
