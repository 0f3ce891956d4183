"""Stage 5: copies of held-out rows that are unlike the training data, made at the embedding.

Rows like the training data cannot tell how much to doubt rows that are not. These copies can: they
keep their label and lose some of what it is known by. Nothing here knows what the inputs are.
"""

import torch
from torch import Tensor

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
    generator : torch.Generator
        Its device is where the work is done.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def __call__(self, h: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return perturbed copies of the embeddings `h` (n, t, d); padding is left alone."""
        device = self.generator.device
        h0 = h.to(device)
        real = torch.ones(h.shape[:2], dtype=torch.bool, device=device)
        real = real if mask is None else mask.to(device)
        tokens = h0[real]
        mean, std = tokens.mean(0), tokens.std(0, correction=0)
        n = len(h)
        kind = self._kinds(n)
        low, high = torch.tensor(list(KINDS.values()), device=device).T
        at = torch.rand(n, generator=self.generator, device=device)
        strength = (low[kind] + at * (high - low)[kind])[:, None, None]
        normal = torch.randn(h.shape, generator=self.generator, device=device)
        uniform = torch.rand(h.shape[:2], generator=self.generator, device=device)
        dropped = uniform[..., None] < strength
        dropped[:, 0] = False
        other = h0[torch.randperm(n, generator=self.generator, device=device)]
        made = torch.stack(
            [
                h0 + strength * std * normal,
                torch.where(dropped, mean, h0),
                (1 - strength) * h0 + strength * other,
                mean + strength * (h0 - mean),
            ]
        )
        changed = made[kind, torch.arange(n, device=device)]
        return torch.where(real[..., None], changed, h0).to(h)

    def _kinds(self, n: int) -> Tensor:
        device = self.generator.device
        return torch.randint(len(KINDS), (n,), generator=self.generator, device=device)
