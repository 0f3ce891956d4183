"""Stage 3: the unified transition, one network for every step of the path.

`UnifiedTransition` is a block of the wrapped model whose matrices are ``W_shared + U_s V_s`` and
whose vectors (norms, biases, gains) are per step. The block's own code runs on these parameters
by `torch.func.functional_call`, so masks, rotary or relative positions and any architecture that
the backbone can cut come along without code of their own.
"""

import copy

import torch
from torch import nn
from torch.func import functional_call

from sklearn_diffuq._path.time_grid import steps_of

LOG_VARIANCE_BOUNDS = (-16.0, 8.0)


class UnifiedTransition(nn.Module):
    """One transition network for all steps, a `Mean` of the Gaussian path.

    Parameters
    ----------
    intervals : sequence of (int, int), length n_intervals
        The steps it knows, from a block to a later one, see `steps_of`. Those of one time grid, or
        of several that share the network.
    matrices : dict from name to Tensor of shape (n_intervals, out, in)
        The per-step matrices to start from.
    vectors : dict from name to Tensor of shape (n_intervals, ...)
        The per-step vectors (norms, biases, gains) to start from.
    backbone : Backbone
        Its blocks supply the code that is run, and the recorded arguments; their parameters are
        not used, never trained, and not part of the state.
    rank : int or None
        Rank of the per-step deltas. None keeps every step's full matrix.
    n_shared_blocks : int, default=1
        Number of shared matrices; consecutive steps share one.

    Attributes
    ----------
    entries : tuple of int
        The intervals that are followed, in order; all of them at first, see `on`.

    Notes
    -----
    Shape: `forward` maps a state (n, t, d) at step s to the mean (n, t, d) at step s + 1.
    """

    def __init__(self, intervals, matrices, vectors, backbone, rank, n_shared_blocks=1):
        super().__init__()
        n = len(intervals)
        self.intervals = tuple(map(tuple, intervals))
        self.entries = tuple(range(n))
        self.rank = rank
        groups = [start * n_shared_blocks // backbone.n_blocks for start, _ in intervals]
        self.group = [sorted(set(groups)).index(g) for g in groups]
        templates = [backbone.blocks[stop - 1] for _, stop in intervals]
        self._templates = [copy.deepcopy(t).to("meta").eval() for t in templates]
        self._buffers_of = [dict(t.named_buffers()) for t in templates]
        self._backbone = [backbone]  # a list hides it from nn.Module: it is not part of the state
        self.log_variance = nn.Parameter(torch.zeros(n, backbone.width))
        self.vectors = nn.ParameterDict({_key(k): v.clone() for k, v in vectors.items()})
        self.shared, self.up, self.down = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        n_shared = n if rank is None else max(self.group) + 1
        for name, stack in matrices.items():
            key, (_, d_out, d_in) = _key(name), stack.shape
            self.shared[key] = stack.new_zeros(n_shared, d_out, d_in)
            if rank is not None:
                self.up[key] = stack.new_zeros(n, d_out, rank)
                self.down[key] = stack.new_zeros(n, rank, d_in)

    def on(self, grid):
        """Return this transition on a time grid; the parameters are shared."""
        other = copy.copy(self)
        other.entries = tuple(self.intervals.index(step) for step in steps_of(grid))
        return other

    @property
    def n_steps(self):
        """Number of steps that are followed."""
        return len(self.entries)

    @property
    def grid(self):
        """Time grid of the steps that are followed."""
        stops = [self.intervals[i][1] for i in self.entries]
        return (self.intervals[self.entries[0]][0], *stops)

    @property
    def n_parameters(self):
        """Number of parameters that the followed steps need."""
        shared = sum(p[0].numel() for p in self.shared.values())
        total = sum(p.numel() for p in self.parameters()) - sum(
            p.numel() for p in self.shared.values()
        )
        n_shared = self.n_steps if self.rank is None else len({self.group[i] for i in self.entries})
        return total * self.n_steps // len(self.intervals) + shared * n_shared

    def variance(self, step):
        """Return the variance of the transition's error per channel, shape (d,)."""
        return self.log_variance[self.entries[step]].clamp(*LOG_VARIANCE_BOUNDS).exp()

    def variances(self):
        """Return the variances of all steps it knows, detached, shape (n_intervals, d)."""
        return self.log_variance.detach().clamp(*LOG_VARIANCE_BOUNDS).exp()

    def matrix(self, key, step):
        """Return the matrix `key` of `step`, shape (out, in)."""
        i = self.entries[step]
        if self.rank is None:
            return self.shared[key][i]
        return self.shared[key][self.group[i]] + self.up[key][i] @ self.down[key][i]

    def forward(self, h, step, context):
        """Return the mean of the state after `step`, from the state `h` (n, t, d) before it."""
        i = self.entries[step]
        parameters = {_name(k): v[i] for k, v in self.vectors.items()}
        parameters |= {_name(k): self.matrix(k, step) for k in self.shared}
        parameters |= {n: b.to(h.device) for n, b in self._buffers_of[i].items()}

        def call(*args, **kwargs):
            return functional_call(self._templates[i], parameters, args, kwargs)

        return self._backbone[0].block(self.intervals[i][1] - 1, h, context, call=call)


def _key(name):
    return name.replace(".", "/")  # torch refuses dots in parameter names


def _name(key):
    return key.replace("/", ".")
