"""First and second moments, summed over batches: of increments, and of the inputs of layers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor, nn

Key = tuple[int, str]  # block, and name of the weight


class RunningMoments:
    """Mean and covariance (or variance) of rows that come in batches.

    Parameters
    ----------
    full : bool, default=False
    dtype : torch.dtype, default=torch.float64
        Of the sums. What is not centred afterwards needs no more than float32.
    """

    def __init__(self, full: bool = False, dtype: torch.dtype = torch.float64) -> None:
        self.full, self.dtype = full, dtype
        self.n = 0
        self.total: Tensor | float = 0.0
        self.square: Tensor | float = 0.0

    def update(self, x: Tensor) -> None:
        """Add rows (n, d)."""
        self.n += len(x)
        total, square = x.sum(0), x.T @ x if self.full else x.square().sum(0)
        if isinstance(self.square, Tensor):
            self.square += square  # in place: it may be the largest tensor there is
        else:
            self.square = square.to(self.dtype)
        self.total = self.total + total.to(self.dtype)

    def mean(self) -> Tensor:
        """Return the mean (d,) of all rows."""
        return torch.as_tensor(self.total) / self.n

    def second_moment(self) -> Tensor:
        """Return the second moment (d, d), or its diagonal (d,)."""
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
        Layers of a block that get the same tensor share one.
    """

    mean: dict[Key, Tensor]
    second: dict[Key, Tensor]

    def clear(self) -> None:
        """Give the memory back; of a wide model they are larger than its blocks."""
        self.mean.clear()
        self.second.clear()


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
        self._leaders: dict[Key, Key] = {}  # the layer that gets the same tensor, maybe itself
        # who got the last new tensor, the tensor, and how often it had been changed by then
        self._given: tuple[Key, Tensor, int] | None = None
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
        self._handles, self._given = [], None

    def _hook(self, key: Key) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def record(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0]
            if key not in self._leaders:
                leader, given = key, self._given
                if (
                    given is not None
                    and given[1] is x
                    and given[2] == x._version
                    and given[0][0] == key[0]
                ):
                    leader = given[0]
                self._leaders[key] = leader
            if self._leaders[key] != key:
                return
            self._given = key, x, x._version
            x = x.detach()
            if self.mask is not None and x.shape[:2] == self.mask.shape:
                x = x[self.mask]
            sums = self._sums.setdefault(key, RunningMoments(True, torch.float32))
            sums.update(x.flatten(0, -2).float())

        return record

    def moments(self) -> InputMoments:
        """Return the `InputMoments` of everything seen."""
        mean, second = {}, {}
        for key in list(self._sums):
            sums = self._sums.pop(key)  # a sum and its moment are not kept both
            mean[key], second[key] = sums.mean(), sums.second_moment()
        leaders = self._leaders.items()
        return InputMoments(
            {key: mean[leader] for key, leader in leaders},
            {key: second[leader] for key, leader in leaders},
        )
