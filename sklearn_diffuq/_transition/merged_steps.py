"""Steps of the unified transition on merged matrices: ``W_shared + U_s V_s`` is computed once."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sklearn_diffuq._transition.parameter_stacks import ParameterStack

Block = Callable[..., Any]  # whatever the block takes and returns
Precision = Callable[[torch.device], AbstractContextManager[Any]]


def as_it_is(device: torch.device) -> AbstractContextManager[None]:
    """Return a context that changes nothing."""
    return nullcontext()


def rows_by_step(
    stacks: Mapping[str, ParameterStack], merged: Mapping[str, Tensor], n_steps: int
) -> list[dict[str, Tensor]]:
    """Return the parameters of each step by their names in its block.

    All rows of a stack are taken at once: their gradients come back as one stack.
    """
    parameters: list[dict[str, Tensor]] = [{} for _ in range(n_steps)]
    for key, stack in stacks.items():
        for step, value in zip(stack.steps, merged[key].unbind(), strict=True):
            parameters[step][stack.name] = value
    return parameters


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute what is kept: as plain tensors, in the precision they are stored in."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def functional_block(template: nn.Module, parameters: dict[str, Tensor]) -> Block:
    """Return a block's code on given parameters and buffers."""
    return lambda *args, **kwargs: functional_call(template, parameters, args, kwargs)


class FrozenSteps:
    """A block of its own for every step, whose parameters are the merged ones.

    A step then costs what a block of the wrapped model costs.

    Parameters
    ----------
    templates : sequence of torch.nn.Module
        The code of each step's block; copied.
    parameters : sequence of dict of str to Tensor
        Parameters and buffers of each step.
    source : sequence of Tensor
        What they were computed from; see `are_of`.
    """

    def __init__(
        self,
        templates: Sequence[nn.Module],
        parameters: Sequence[Mapping[str, Tensor]],
        source: Sequence[Tensor],
    ) -> None:
        self.blocks = [copy.deepcopy(template) for template in templates]
        self.source = _identities(source)
        for block, values in zip(self.blocks, parameters, strict=True):
            for name, value in values.items():
                path, _, leaf = name.rpartition(".")
                owner = block.get_submodule(path)
                if leaf in owner._parameters:
                    owner._parameters[leaf] = nn.Parameter(value, requires_grad=False)
                else:
                    owner._buffers[leaf] = value

    def are_of(self, source: Sequence[Tensor]) -> bool:
        """Tell whether these are the tensors, in this state and place, that were merged."""
        return self.source == _identities(source)


def _identities(tensors: Sequence[Tensor]) -> list[tuple[int, int, int]]:
    # Inference tensors do not count their changes; nothing changes them outside of that mode.
    return [(id(t), t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]
