"""The mean of the path: what its steps do without noise."""

from typing import ClassVar, Protocol

import torch
from torch import Tensor

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._backbones.context import Context
from sklearn_diffuq._path.time_grid import Grid, Interval
from sklearn_diffuq._state import State


class Mean(Protocol):
    """What the steps of a path do on average: the frozen blocks, or one network for all."""

    kind: ClassVar[str]
    rank: int | None

    def __call__(self, h: Tensor, interval: Interval, context: Context) -> Tensor: ...

    def n_parameters(self, grid: Grid) -> int: ...

    def to_state(self) -> State: ...


class BlockwiseMean:
    """The frozen mean ``F_s``: the blocks of the wrapped model that a step stands for (eq. 1.1).

    Parameters
    ----------
    backbone : Backbone
    """

    kind: ClassVar[str] = "blockwise"
    rank: int | None = None

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone

    def __call__(self, h: Tensor, interval: Interval, context: Context) -> Tensor:
        return self.backbone.advance(h, context, *interval)

    def n_parameters(self, grid: Grid) -> int:
        """Return the number of parameters of the blocks, whatever the grid."""
        return self.backbone.n_block_parameters

    def to_state(self) -> State:
        """Return nothing: the wrapped model has it all."""
        return State({})

    @classmethod
    def from_state(cls, state: State, backbone: Backbone) -> "BlockwiseMean":
        """Build the mean again."""
        return cls(backbone)


class MixedMean:
    """A mean whose steps compute in bfloat16, on states in float32.

    Parameters
    ----------
    mean : Mean
    """

    kind: ClassVar[str] = "mixed"

    def __init__(self, mean: Mean) -> None:
        self.mean, self.rank = mean, mean.rank

    def __call__(self, h: Tensor, interval: Interval, context: Context) -> Tensor:
        with torch.autocast(h.device.type, torch.bfloat16):
            return self.mean(h, interval, context).to(h.dtype)

    def n_parameters(self, grid: Grid) -> int:
        """Return the number of parameters of the mean."""
        return self.mean.n_parameters(grid)

    def to_state(self) -> State:
        """Return the state of the mean."""
        return self.mean.to_state()
