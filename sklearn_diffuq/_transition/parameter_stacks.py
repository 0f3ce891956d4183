"""Which parameters the steps of the unified transition have in common."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import nn

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._path.time_grid import Interval


@dataclass(frozen=True)
class ParameterStack:
    """A parameter of one name and shape, in all steps whose block has it.

    Attributes
    ----------
    name : str
        In the block.
    shape : tuple of int
    steps : tuple of int
        Numbers of the steps that have it, in order: row ``r`` of the stack is step ``steps[r]``.
    group : tuple of int, of the length of `steps`
        Which shared matrix each row uses, numbered from 0.
    is_shared : bool
        Whether it is a matrix of which rows share one and have low-rank changes. What a single
        block has, and what is no matrix, is kept per step.
    """

    name: str
    shape: tuple[int, ...]
    steps: tuple[int, ...]
    group: tuple[int, ...]
    is_shared: bool

    def size(self, steps: Sequence[int], rank: int | None) -> int:
        """Return the number of parameters that some of the steps need."""
        rows = [row for row, step in enumerate(self.steps) if step in steps]
        if rank is None or not self.is_shared:
            return len(rows) * prod(self.shape)
        n_shared = len({self.group[row] for row in rows})
        return n_shared * prod(self.shape) + len(rows) * rank * sum(self.shape)


def is_matrix(shape: Sequence[int]) -> bool:
    """Tell whether a parameter of this shape gets low-rank changes, and not a copy per step."""
    return len(shape) == 2 and min(shape) > 1


def further_names(block: nn.Module) -> dict[str, str]:
    """Return the further names of parameters that a block has under several: ``{name: first}``."""
    first: dict[int, str] = {}
    names: dict[str, str] = {}
    for name, parameter in block.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            names[name] = first[id(parameter)]
    return names


def parameter_stacks(
    backbone: Backbone, intervals: Sequence[Interval], group: Sequence[int]
) -> dict[str, ParameterStack]:
    """Return ``{key: stack}``: what the blocks that the steps end with have in common.

    The key of a parameter is its name without dots, which torch refuses. Where blocks have a
    parameter in several shapes, further shapes add theirs.
    """
    steps: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for step, (_, stop) in enumerate(intervals):
        for name, parameter in backbone.blocks[stop - 1].named_parameters():
            steps.setdefault((name, tuple(parameter.shape)), []).append(step)
    stacks: dict[str, ParameterStack] = {}
    for (name, shape), having in steps.items():
        key = name.replace(".", "/")
        if key in stacks:
            key += "@" + "x".join(map(str, shape))
        used = sorted({group[step] for step in having})
        rows = tuple(used.index(group[step]) for step in having)
        is_own = len(having) == 1 < len(intervals)
        shared = is_matrix(shape) and not is_own
        stacks[key] = ParameterStack(name, shape, tuple(having), rows, shared)
    return stacks
