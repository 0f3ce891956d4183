"""The unified transition, one network for every step of the path.

`UnifiedTransition` is a block of the wrapped model whose matrices are ``W_shared + U_s V_s`` and
whose vectors (norms, biases, gains) are per step. The block's own code runs on these parameters, so
masks, rotary or relative positions and any architecture that the backbone can cut come along
without code of their own. Blocks may differ: a step runs the code
of its own block, what blocks have in common is shared, and the rest is the step's own.
"""

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._backbones.context import Context
from sklearn_diffuq._backbones.freezing import lock_of
from sklearn_diffuq._backbones.precision import widened
from sklearn_diffuq._path.time_grid import Grid, Interval, steps_of
from sklearn_diffuq._state import State
from sklearn_diffuq._transition.merged_steps import (
    FrozenSteps,
    Precision,
    as_it_is,
    full_precision,
    functional_block,
    rows_by_step,
)
from sklearn_diffuq._transition.parameter_stacks import (
    further_names,
    is_matrix,
    parameter_stacks,
)

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
    Without gradients the matrices of all steps are merged once and kept, as large as the blocks
    that they stand for, until a parameter changes; `merged` does it for parameters that are being
    trained. Neither is part of the state, of pickles or of copies.

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
        self._frozen: FrozenSteps | None = None
        self._buffers_of = [dict(block.named_buffers()) for block in blocks]
        self.tied = [further_names(block) for block in blocks]
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

    def variances_of(self, intervals: Sequence[Interval]) -> Tensor:
        """Return the variance of the transition's error per step and channel, shape (S, d)."""
        known: Tensor = self.log_variance
        if tuple(intervals) != self.intervals:
            rows = known.unbind()
            known = torch.stack([rows[self.intervals.index(interval)] for interval in intervals])
        return _variance(known)

    def variances(self) -> Tensor:
        """Return the variances of all steps it knows, detached, shape (n_intervals, d)."""
        return _variance(self.log_variance.detach())

    def parameter(self, key: str, i: int) -> Tensor:
        """Return the parameter `key` of interval number `i`, whose block has it."""
        return self.merged_stack(key)[self.stacks[key].steps.index(i)]

    def merged_stack(self, key: str) -> Tensor:
        """Return the parameter `key` of all steps that have it, stacked."""
        if key in self.vectors:
            return self.vectors[key]
        shared: Tensor = self.shared[key]
        if key not in self.up:
            return shared
        if len(shared) > 1:  # one is broadcast; an index would have to go to the device
            matrices = shared.unbind()
            shared = torch.stack([matrices[g] for g in self.stacks[key].group])
        return shared + self.up[key] @ self.down[key]

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Have the call of all steps compiled, see `BatchedSteps`; a single one takes a lock."""
        super().compile(*args, **kwargs)
        self._compile_options = args, kwargs

    @property
    def compile_options(self) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """What `compile` was given; None where nothing is to be compiled."""
        return None if self._compiled_call_impl is None else self._compile_options

    def merged(self, precision: Precision = as_it_is) -> "MergedSteps":
        """Return the steps with their matrices merged now, as long as no parameter changes.

        Blocks run inside of ``precision(device)``, a context; the matrices are merged outside.
        """
        self._frozen = None  # the steps of optimisers leave no trace
        return MergedSteps(self, precision)

    def forward(self, h: Tensor, interval: Interval, context: Context) -> Tensor:
        """Return the mean of the state after a step, from the state `h` (n, t, d) before it."""
        sources = self._sources()
        if any(p.requires_grad for p in sources):
            return self.merged()(h, interval, context)
        with lock_of(self.backbone.module):
            frozen = self._frozen
            if frozen is None or not frozen.are_of(sources):
                with full_precision(h.device):
                    parameters = MergedSteps(self, as_it_is).parameters
                self._frozen = frozen = FrozenSteps(self._templates, parameters, sources)
        block = frozen.blocks[self.intervals.index(interval)]
        return self.backbone.block(interval[1] - 1, h, context, call=block)

    def _sources(self) -> list[Tensor]:
        """Return the parameters of the mean, without a walk through the modules."""
        kept = (self.vectors, self.shared, self.up, self.down)
        return [p for part in kept for p in part._parameters.values() if p is not None]

    def buffers_of(self, i: int, device: torch.device) -> dict[str, Tensor]:
        """Return the buffers of the block of interval number `i`, in float32 at least."""
        return {name: widened(b.to(device)) for name, b in self._buffers_of[i].items()}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_frozen": None}

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


class MergedSteps:
    """The steps of a unified transition with their matrices merged, a `Mean` that is not kept.

    Gradients flow to the parameters of the transition.

    Attributes
    ----------
    stacked : dict of str to Tensor
        Each parameter of all steps that have it.
    """

    kind: ClassVar[str] = "unified"

    def __init__(self, transition: UnifiedTransition, precision: Precision) -> None:
        self.transition, self.precision = transition, precision
        self.rank = transition.rank
        self.stacked = {key: transition.merged_stack(key) for key in transition.stacks}

    @cached_property
    def parameters(self) -> list[dict[str, Tensor]]:
        """Parameters and buffers of the block of each step."""
        transition = self.transition
        device, n_steps = transition.log_variance.device, len(transition.intervals)
        with torch.enable_grad():  # what is first asked for without gradients may later need them
            steps = rows_by_step(transition.stacks, self.stacked, n_steps)
        for own, tied in zip(steps, transition.tied, strict=True):
            own |= {name: own[first] for name, first in tied.items()}
        return [own | transition.buffers_of(i, device) for i, own in enumerate(steps)]

    def __call__(self, h: Tensor, interval: Interval, context: Context) -> Tensor:
        transition = self.transition
        i = transition.intervals.index(interval)
        block = functional_block(transition._templates[i], self.parameters[i])
        with self.precision(h.device):
            return transition.backbone.block(interval[1] - 1, h, context, call=block).to(h)

    def n_parameters(self, grid: Grid) -> int:
        return self.transition.n_parameters(grid)

    def to_state(self) -> State:
        return self.transition.to_state()


def _zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=torch.float32, device="cpu"))


def _variance(log_variance: Tensor) -> Tensor:
    return log_variance.clamp(*LOG_VARIANCE_BOUNDS).exp()
