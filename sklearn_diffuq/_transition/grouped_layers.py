"""A block's code for several steps at once, the step folded into the rows of the batch.

Rows come step by step: those of the first step, then those of the second. Only what holds
parameters has to know of that; attention and the rest of the block see more rows.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F


class GroupedBlock(nn.Module):
    """A copy of a block whose parameters have a further first axis, the steps.

    Parameters
    ----------
    template : torch.nn.Module
        Its parameters are not used.

    Raises
    ------
    NotGroupedError
        If a part of the block holds parameters in a way that is not known.
    """

    def __init__(self, template: nn.Module) -> None:
        super().__init__()
        self.block = copy.deepcopy(template)
        self.per_row: list[str] = []  # vectors that a part with further parts uses by itself
        for name, part in list(self.block.named_modules()):
            own = {n: p for n, p in part._parameters.items() if p is not None}
            if not own:
                continue
            if not name or any(True for _ in part.children()):
                if any(p.ndim > 1 for p in own.values()):
                    raise NotGroupedError(f"{type(part).__name__} has matrices of its own")
                self.per_row += [f"{name}.{n}" if name else n for n in own]
            else:
                path, _, leaf = name.rpartition(".")
                self.block.get_submodule(path)._modules[leaf] = grouped_layer(part)

    def forward(
        self, parameters: Mapping[str, Tensor], n_rows: int, args: tuple, kwargs: dict
    ) -> Tensor:
        """Call the block on the rows of all steps, `n_rows` in all, with stacked parameters."""
        values = dict(parameters)
        for name in self.per_row:
            value = values[name]
            repeated = value[:, None, None].expand(-1, n_rows // len(value), 1, -1)
            values[name] = repeated.flatten(0, 1)
        output: Tensor = functional_call(self.block, values, args, kwargs)
        return output


class NotGroupedError(Exception):
    """A part of a block cannot be run for several steps at once."""


def grouped_layer(layer: nn.Module) -> nn.Module:
    """Return the layer for stacked parameters, which it has under the same names."""
    parameters = [p for p in layer._parameters.values() if p is not None]
    kind: type[_Grouped] | None = None
    if type(layer).forward is nn.Linear.forward or type(layer).__name__ == "Conv1D":
        kind = _GroupedLinear
    elif isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
        kind = _GroupedNorm
    elif all(p.ndim == 1 for p in parameters):
        kind = _GroupedVectors
    if kind is None:
        raise NotGroupedError(f"{type(layer).__name__} is not known")
    return kind(layer)


class _Grouped(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = [layer]  # a list hides it: its parameters are not those of the group
        self._parameters.update(layer._parameters)

    def stacked(self, name: str) -> Tensor | None:
        """Return a parameter with the steps on its first axis, None if the layer has none."""
        return self._parameters.get(name)


class _GroupedLinear(_Grouped):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        # Hugging Face's Conv1D (GPT-2) is a linear layer with a transposed weight.
        self.is_transposed = type(layer).__name__ == "Conv1D"

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.stacked("weight"), self.stacked("bias")
        assert weight is not None
        weight = weight if self.is_transposed else weight.mT
        rows = x.reshape(len(weight), -1, x.shape[-1])
        if bias is None:
            product = torch.bmm(rows, weight)
        else:
            product = torch.baddbmm(bias[:, None], rows, weight)
        return product.view(*x.shape[:-1], -1)


class _GroupedNorm(_Grouped):
    def forward(self, x: Tensor) -> Tensor:
        layer: Any = self.layer[0]
        norm: Any = F.layer_norm if isinstance(layer, nn.LayerNorm) else F.rms_norm
        x = norm(x, layer.normalized_shape, eps=layer.eps)
        weight, bias = self.stacked("weight"), self.stacked("bias")
        if weight is None:
            return x
        rows = x.reshape(len(weight), -1, x.shape[-1])
        if bias is None:
            rows = rows * weight[:, None]
        else:
            rows = torch.addcmul(bias[:, None], rows, weight[:, None])
        return rows.view(x.shape)


class _GroupedVectors(_Grouped):
    """Any layer whose vectors meet the last axis, such as an RMS norm or LayerScale."""

    def forward(self, x: Tensor) -> Tensor:
        given = {name: value for name, value in self._parameters.items() if value is not None}
        n_steps = len(next(iter(given.values())))
        shape = (n_steps, *[1] * (x.ndim - 1), -1)
        values = {name: value.view(shape) for name, value in given.items()}
        rows: Tensor = functional_call(self.layer[0], values, (x.unflatten(0, (n_steps, -1)),))
        return rows.flatten(0, 1)
