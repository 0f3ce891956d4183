"""First and second moments, summed over batches: of increments, and of the inputs of layers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor, nn

Key = tuple[int, str]  # block, and name of the weight


class RunningMoments:
    """Mean and covariance (or variance) of rows that come in batches, summed in float64."""

    def __init__(self, full: bool = False) -> None:
        self.full = full
        self.n = 0
        self.total: Tensor | float = 0.0
        self.square: Tensor | float = 0.0

    def update(self, x: Tensor) -> None:
        """Add rows (n, d)."""
        self.n += len(x)
        self.total = self.total + x.sum(0).double()
        square = x.T @ x if self.full else x.square().sum(0)
        self.square = self.square + square.double()

    def mean(self) -> Tensor:
        """Return the mean (d,) of all rows, float64."""
        return torch.as_tensor(self.total) / self.n

    def second_moment(self) -> Tensor:
        """Return the second moment (d, d), or its diagonal (d,), float64."""
        return torch.as_tensor(self.square) / self.n

    def covariance(self) -> Tensor:
        """Return the covariance (d, d), or the variance (d,), of all rows."""
        mean = self.mean()
        product = torch.outer(mean, mean) if self.full else mean.square()
        covariance = self.second_moment() - product
        # Rounding must not make the variance of a constant channel negative.
        return (covariance if self.full else covariance.clamp_min(0)).float()


@dataclass(frozen=True)
class InputMoments:
    """First and second moment of what enters each linear layer of each block.

    Attributes
    ----------
    mean, second : dict from (block, parameter name) to Tensor of shape (d_in,) and (d_in, d_in)
    """

    mean: dict[Key, Tensor]
    second: dict[Key, Tensor]


def linear_layers(block: nn.Module) -> Iterator[tuple[str, str | None, nn.Module, int]]:
    """Yield (weight name, bias name or None, module, input axis of the weight) of `block`."""
    for name, module in block.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim != 2 or isinstance(module, nn.Embedding):
            continue
        # Hugging Face's Conv1D (GPT-2) is a linear layer with a transposed weight.
        axis = 0 if type(module).__name__ == "Conv1D" else 1
        prefix = f"{name}." if name else ""
        bias = f"{prefix}bias" if isinstance(getattr(module, "bias", None), Tensor) else None
        yield f"{prefix}weight", bias, module, axis


class MomentCollector:
    """Collect `InputMoments` by hooks on the linear layers while the frozen blocks run.

    Use as a context manager around forward passes; set `mask` before each batch.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self.blocks = blocks
        self.mask: Tensor | None = None
        self._sums: dict[Key, RunningMoments] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> "MomentCollector":
        for k, block in enumerate(self.blocks):
            for name, _, module, _ in linear_layers(block):
                hook = self._hook((k, name))
                self._handles.append(module.register_forward_pre_hook(hook))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _hook(self, key: Key) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def record(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].detach()
            if self.mask is not None and x.shape[:2] == self.mask.shape:
                x = x[self.mask]
            self._sums.setdefault(key, RunningMoments(full=True)).update(x.flatten(0, -2).float())

        return record

    def moments(self) -> InputMoments:
        """Return the `InputMoments` of everything seen."""
        mean = {key: m.mean().float() for key, m in self._sums.items()}
        second = {key: m.second_moment().float() for key, m in self._sums.items()}
        return InputMoments(mean, second)
