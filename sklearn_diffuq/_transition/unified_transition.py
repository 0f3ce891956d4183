"""The unified transition, one network for every step of the path.

`UnifiedTransition` is a block of the wrapped model whose matrices are ``W_shared + U_s V_s`` and
whose vectors (norms, biases, gains) are per step. The block's own code runs on these parameters
by `torch.func.functional_call`, so masks, rotary or relative positions and any architecture that
the backbone can cut come along without code of their own.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._backbones.context import Context
from sklearn_diffuq._backbones.precision import widened
from sklearn_diffuq._path.time_grid import Grid, Interval, steps_of
from sklearn_diffuq._state import State

LOG_VARIANCE_BOUNDS = (-16.0, 8.0)


class UnifiedTransition(nn.Module):
    """One transition network for all steps, a `Mean` of the Gaussian path (eq. 2.1).

    Parameters
    ----------
    intervals : sequence of (int, int), length n_intervals
        The steps it knows, from a block to a later one, see `steps_of`. Those of one time grid, or
        of several that share the network.
    matrices : dict from name to Tensor of shape (n_intervals, out, in)
        The per-step matrices; only their shapes are read.
    vectors : dict from name to Tensor of shape (n_intervals, ...)
        The per-step vectors (norms, biases, gains) to start from.
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
        matrices: Mapping[str, Tensor],
        vectors: Mapping[str, Tensor],
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
        # Lists hide modules from nn.Module: the blocks' code is not part of the state.
        blocks = [backbone.blocks[stop - 1] for _, stop in self.intervals]
        self._templates = [copy.deepcopy(block).to("meta").eval() for block in blocks]
        self._buffers_of = [dict(block.named_buffers()) for block in blocks]
        self.log_variance = nn.Parameter(torch.zeros(n, backbone.width))
        self.vectors = nn.ParameterDict({key_of(k): v.clone() for k, v in vectors.items()})
        self.shared, self.up, self.down = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        n_shared = n if rank is None else max(self.group) + 1
        for name, stack in matrices.items():
            key, (_, d_out, d_in) = key_of(name), stack.shape
            self.shared[key] = stack.new_zeros(n_shared, d_out, d_in)
            if rank is not None:
                self.up[key] = stack.new_zeros(n, d_out, rank)
                self.down[key] = stack.new_zeros(n, rank, d_in)

    def n_parameters(self, grid: Grid) -> int:
        """Return the number of parameters that the steps of a time grid need."""
        used = [self.intervals.index(interval) for interval in steps_of(grid)]
        shared = sum(p[0].numel() for p in self.shared.values())
        n_shared = len(used if self.rank is None else {self.group[i] for i in used})
        own = sum(p.numel() for p in self.parameters())
        own -= sum(p.numel() for p in self.shared.values())
        return own * len(used) // len(self.intervals) + shared * n_shared

    def variance(self, interval: Interval) -> Tensor:
        """Return the variance of the transition's error per channel, shape (d,)."""
        return _variance(self.log_variance[self.intervals.index(interval)])

    def variances(self) -> Tensor:
        """Return the variances of all steps it knows, detached, shape (n_intervals, d)."""
        return _variance(self.log_variance.detach())

    def matrix(self, key: str, i: int) -> Tensor:
        """Return the matrix `key` of interval number `i`, shape (out, in)."""
        if self.rank is None:
            return self.shared[key][i]
        return self.shared[key][self.group[i]] + self.up[key][i] @ self.down[key][i]

    def forward(self, h: Tensor, interval: Interval, context: Context) -> Tensor:
        """Return the mean of the state after a step, from the state `h` (n, t, d) before it."""
        i = self.intervals.index(interval)
        parameters = {name_of(k): v[i] for k, v in self.vectors.items()}
        parameters |= {name_of(k): self.matrix(k, i) for k in self.shared}
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
        n = len(config["intervals"])
        # zeros without memory: the constructor reads nothing but the shapes of the matrices
        matrices = {
            name_of(key): torch.zeros(()).expand(n, *value.shape[1:])
            for key, value in state.part("shared").tensors.items()
        }
        vectors = {name_of(key): value for key, value in state.part("vectors").tensors.items()}
        transition = cls(
            config["intervals"], matrices, vectors, backbone, config["rank"], config["group"]
        )
        transition.load_state_dict(state.tensors)
        return transition.requires_grad_(False)


def _variance(log_variance: Tensor) -> Tensor:
    return log_variance.clamp(*LOG_VARIANCE_BOUNDS).exp()


def key_of(name: str) -> str:
    """Return the key of a parameter: torch refuses dots in the names of parameters."""
    return name.replace(".", "/")


def name_of(key: str) -> str:
    """Return the name of the parameter of a key."""
    return key.replace("/", ".")
