"""How far the embeddings of a batch lie, on average, from those of the training data.

The distance of the path is measured on states of unit length and saturates. Inputs that were scaled
in another way show in the embedding as it is.
"""

import torch
from torch import Tensor, nn

from sklearn_diffuq._backbones.context import Context, mean_over_tokens
from sklearn_diffuq._state import State

MIN_SHIFT_ROWS = 16  # fewer different rows are no batch
HELD_OUT_SHIFT = 1.25  # of held-out rows; rows drawn alike have 1 / sqrt(n)
BATCH_SHIFT = 2.5  # of rows to predict, which may be shifted for good reasons


class EmbeddingMoments(nn.Module):
    """Mean and standard deviation of the training rows' embeddings.

    Parameters
    ----------
    mean, std : Tensor of shape (d,)
        Of the token means.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    @classmethod
    def of(cls, embedded: Tensor) -> "EmbeddingMoments | None":
        """Take the moments of token means of training rows (n, d); None if they are few."""
        if len(embedded) < MIN_SHIFT_ROWS:
            return None
        std, mean = torch.std_mean(embedded.float(), 0)
        # what is constant in the training data may change in the last bits
        return cls(mean, std.clamp_min(max(1e-3 * float(std.max()), 1e-12)))

    def shift(self, looks: Tensor) -> float | None:
        """Return the root mean square over channels of the shift of the mean; eq. 7.4.

        In standard deviations of training rows. None if there are too few different rows to tell.

        Parameters
        ----------
        looks : Tensor of shape (n, d + 1)
            What `look_at` has seen of n rows.
        """
        rows = torch.unique(looks, dim=0)  # a chunk is filled up by repeating a row
        if len(rows) < MIN_SHIFT_ROWS:
            return None
        mean = rows.float().mean(0)
        shift = ((mean[:-1] - self.mean) / self.std).square().mean().sqrt()
        return float(shift + mean[-1])

    def to_state(self) -> State:
        """Return the moments."""
        return State({}, self.state_dict())

    @classmethod
    def from_state(cls, state: State) -> "EmbeddingMoments | None":
        """Build the moments that `to_state` described; None if there were none."""
        return cls(**state.tensors) if state.tensors else None


def look_at(h: Tensor, context: Context) -> Tensor:
    """Return what the shift of states (n, t, d) is made of, (n, d + 1).

    The token means, and how far outside of the training range of a table the rows are.
    """
    means = mean_over_tokens(h, context.mask)
    beyond = means.new_zeros(len(means)) if context.beyond is None else context.beyond
    return torch.cat([means, beyond[:, None].to(means.dtype)], 1)


class FirstLook:
    """Looks at the first chunk of embeddings that has enough rows.

    Attributes
    ----------
    shift : float or None
        Of that chunk; None if there was none.
    """

    shift: float | None = None

    def __init__(self, known: EmbeddingMoments) -> None:
        self.known = known

    def __call__(self, h: Tensor, context: Context) -> None:
        """Look at states (n, t, d), if nothing was seen before."""
        if self.shift is None:
            self.shift = self.known.shift(look_at(h, context))

    @property
    def is_far(self) -> bool:
        """Whether the rows are as a whole far from the training data."""
        return self.shift is not None and self.shift > BATCH_SHIFT
