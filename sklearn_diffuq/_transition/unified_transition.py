"""The unified transition, one network for every step of the path.

`UnifiedTransition` is a block of the wrapped model whose matrices are ``W_shared + U_s V_s`` and
whose vectors (norms, biases, gains) are per step. The block's own code runs on these parameters
by `torch.func.functional_call`, so masks, rotary or relative positions and any architecture that
the backbone can cut come along without code of their own. Blocks may differ: a step runs the code
of its own block, what blocks have in common is shared, and the rest is the step's own.
"""

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._backbones.context import Context
from sklearn_diffuq._backbones.precision import widened
from sklearn_diffuq._path.time_grid import Grid, Interval, steps_of
from sklearn_diffuq._state import State
from sklearn_diffuq._transition.parameter_stacks import is_matrix, parameter_stacks

LOG_VARIANCE_BOUNDS = (-16.0, 8.0)


class UnifiedTransition(nn.Module):
    """One transition network for all steps, a `Mean` of the Gaussian path (eq. 2.1).

    Parameters
    ----------
    intervals : sequence of (int, int), length n_intervals
        The steps it knows, from a block to a later one, see `steps_of`. Those of one time grid, or
        of several that share the network.
    backbone : Backbone
        Its blocks supply the code that is run, and the recorded arguments; their parameters are
        not used, never trained, and not part of the state.
    rank : int or None
        Rank of the per-step deltas. None keeps every step's full matrix.
    group : sequence of int, length n_intervals
        Which shared matrices each step uses, numbered from 0.

    Notes
    -----
    Shape: `forward` maps a state (n, t, d) at the start of an interval to the mean (n, t, d) at its
    end.
    """

    kind: ClassVar[str] = "unified"

    def __init__(
        self,
        intervals: Sequence[Interval],
        backbone: Backbone,
        rank: int | None,
        group: Sequence[int],
    ) -> None:
        super().__init__()
        n = len(intervals)
        self.intervals = tuple((int(start), int(stop)) for start, stop in intervals)
        self.rank = rank
        self.group = list(group)
        self.backbone = backbone
        self.stacks = parameter_stacks(backbone, self.intervals, self.group)
        # Lists hide modules from nn.Module: the blocks' code is not part of the state.
        blocks = [backbone.blocks[stop - 1] for _, stop in self.intervals]
        self._templates = [copy.deepcopy(block).to("meta").eval() for block in blocks]
        self._buffers_of = [dict(block.named_buffers()) for block in blocks]
        self.log_variance = _zeros(n, backbone.width)
        self.vectors, self.shared = nn.ParameterDict(), nn.ParameterDict()
        self.up, self.down = nn.ParameterDict(), nn.ParameterDict()
        for key, stack in self.stacks.items():
            n_rows = len(stack.steps)
            if not is_matrix(stack.shape):
                self.vectors[key] = _zeros(n_rows, *stack.shape)
            elif rank is None or not stack.is_shared:
                self.shared[key] = _zeros(n_rows, *stack.shape)
            else:
                d_out, d_in = stack.shape
                self.shared[key] = _zeros(max(stack.group) + 1, d_out, d_in)
                self.up[key] = _zeros(n_rows, d_out, rank)
                self.down[key] = _zeros(n_rows, rank, d_in)

    def n_parameters(self, grid: Grid) -> int:
        """Return the number of parameters that the steps of a time grid need."""
        used = [self.intervals.index(interval) for interval in steps_of(grid)]
        size = sum(stack.size(used, self.rank) for stack in self.stacks.values())
        return size + len(used) * self.backbone.width  # the variances

    def variance(self, interval: Interval) -> Tensor:
        """Return the variance of the transition's error per channel, shape (d,)."""
        return _variance(self.log_variance[self.intervals.index(interval)])

    def variances(self) -> Tensor:
        """Return the variances of all steps it knows, detached, shape (n_intervals, d)."""
        return _variance(self.log_variance.detach())

    def parameter(self, key: str, i: int) -> Tensor:
        """Return the parameter `key` of interval number `i`, whose block has it."""
        stack = self.stacks[key]
        row = stack.steps.index(i)
        if key in self.vectors:
            return self.vectors[key][row]
        if key not in self.up:
            return self.shared[key][row]
        return self.shared[key][stack.group[row]] + self.up[key][row] @ self.down[key][row]

    def forward(self, h: Tensor, interval: Interval, context: Context) -> Tensor:
        """Return the mean of the state after a step, from the state `h` (n, t, d) before it."""
        i = self.intervals.index(interval)
        stacks = self.stacks.items()
        parameters = {s.name: self.parameter(key, i) for key, s in stacks if i in s.steps}
        parameters |= {n: widened(b.to(h.device)) for n, b in self._buffers_of[i].items()}

        def call(*args: Any, **kwargs: Any) -> Any:  # whatever the block takes and returns
            return functional_call(self._templates[i], parameters, args, kwargs)

        return self.backbone.block(interval[1] - 1, h, context, call=call)

    def to_state(self) -> State:
        """Return steps, rank, groups and parameters."""
        config = {
            "intervals": [list(interval) for interval in self.intervals],
            "rank": self.rank,
            "group": self.group,
        }
        return State(config, self.state_dict())

    @classmethod
    def from_state(cls, state: State, backbone: Backbone) -> "UnifiedTransition":
        """Build the transition that `to_state` described, without gradients."""
        config = state.config
        transition = cls(config["intervals"], backbone, config["rank"], config["group"])
        transition.load_state_dict(state.tensors)
        return transition.requires_grad_(False)


def _zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=torch.float32, device="cpu"))


def _variance(log_variance: Tensor) -> Tensor:
    return log_variance.clamp(*LOG_VARIANCE_BOUNDS).exp()
