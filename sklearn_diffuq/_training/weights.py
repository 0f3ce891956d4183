"""The weights that a training keeps: their moving average, and those of the best epoch."""

import contextlib
import math

import torch


class MovingAverage:
    """Exponential moving average of the trained parameters; off when `decay` is 0."""

    def __init__(self, parameters, decay):
        self.parameters, self.decay, self.n_updates = parameters, decay, 0
        self.values = [p.detach().clone() for p in parameters] if decay else []

    @torch.no_grad()
    def update(self):
        if self.decay:
            # a short memory first, so that the start is forgotten
            self.n_updates += 1
            decay = min(self.decay, self.n_updates / (self.n_updates + 9))
            torch._foreach_lerp_(self.values, self.parameters, 1 - decay)

    @torch.no_grad()
    def copy_to_module(self):
        for parameter, value in zip(self.parameters, self.values, strict=False):
            parameter.copy_(value)

    @contextlib.contextmanager
    def swapped_in(self):
        """Give the module the averaged weights for a while."""
        live = [p.detach().clone() for p in self.parameters] if self.decay else []
        self.copy_to_module()
        yield
        with torch.no_grad():
            for parameter, value in zip(self.parameters, live, strict=False):
                parameter.copy_(value)


class BestWeights:
    """The trained parameters and buffers with the lowest score so far."""

    def __init__(self, module, parameters):
        self.tensors = [*parameters, *module.buffers()]
        self.score, self.epoch, self.values = math.inf, -1, None

    def offer(self, score, epoch):
        """Keep the present state if `score` is the lowest; NaN never is. Tell whether it was."""
        better = score < self.score
        if better or self.values is None:
            self.values = [t.detach().clone() for t in self.tensors]
        if better:
            self.score, self.epoch = score, epoch
        return better

    @torch.no_grad()
    def restore(self):
        for tensor, value in zip(self.tensors, self.values, strict=True):
            tensor.copy_(value)
