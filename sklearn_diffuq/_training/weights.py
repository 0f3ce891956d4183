"""The weights that a training keeps: their moving average, and those of the best epoch."""

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class MovingAverage:
    """Exponential moving average of the trained parameters; off when `decay` is 0."""

    def __init__(self, parameters: list[nn.Parameter], decay: float) -> None:
        self.parameters: list[Tensor] = [*parameters]
        self.decay, self.n_updates = decay, 0
        self.values = [p.detach().clone() for p in parameters] if decay else []

    @torch.no_grad()
    def update(self) -> None:
        """Include the current parameters, after a step of the optimiser."""
        if self.decay:
            # a short memory first, so that the start is forgotten
            self.n_updates += 1
            decay = min(self.decay, self.n_updates / (self.n_updates + 9))
            torch._foreach_lerp_(self.values, self.parameters, 1 - decay)

    @torch.no_grad()
    def copy_to_module(self) -> None:
        """Overwrite the parameters with their average."""
        for parameter, value in zip(self.parameters, self.values, strict=False):
            parameter.copy_(value)

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Return a context in which the module has the averaged weights."""
        live = [p.detach().clone() for p in self.parameters] if self.decay else []
        self.copy_to_module()
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.parameters, live, strict=False):
                    parameter.copy_(value)


class BestWeights:
    """The trained parameters and buffers with the lowest score so far."""

    def __init__(self, module: nn.Module, parameters: list[nn.Parameter]) -> None:
        self.tensors: list[Tensor] = [*parameters, *module.buffers()]
        self.values: list[Tensor] = []
        self.score, self.epoch = math.inf, -1

    def offer(self, score: float, epoch: int) -> bool:
        """Keep the current state if `score` is the lowest so far; return whether it is.

        NaN never is; of undefined scores alone, the first state is kept.
        """
        better = score < self.score
        if better or not self.values:
            self.values = [t.detach().clone() for t in self.tensors]
        if better:
            self.score, self.epoch = score, epoch
        return better

    @torch.no_grad()
    def restore(self) -> None:
        """Overwrite the parameters and buffers with the best."""
        for tensor, value in zip(self.tensors, self.values, strict=True):
            tensor.copy_(value)
