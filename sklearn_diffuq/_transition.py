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

from sklearn_diffuq._path import steps_of
from sklearn_diffuq._statistics import linear_layers
from sklearn_diffuq.exceptions import BackboneError

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


def unified_transition(backbone, intervals, rank, moments, n_shared_blocks=1, n_alternations=8):
    """Build a `UnifiedTransition` and start it from the frozen blocks, in closed form.

    For every matrix, ``sum_s w_s ||(W_s - W_shared - U_s V_s) C_s^{1/2}||^2`` is minimised by
    alternating a weighted least squares for ``W_shared`` with a truncated singular value
    decomposition for ``U_s V_s``, where ``C_s`` is the second moment of the layer's inputs and
    ``w_s = 1 / tr(W_s C_s W_s^T)``. Each bias then takes up the mean error. A step of several
    blocks starts from the mean of their matrices.

    Parameters
    ----------
    backbone : Backbone
    intervals : sequence of (int, int)
        The steps, see `UnifiedTransition`.
    rank : int or None
        Rank of the per-step deltas; None for full rank, which is exact for steps of one block.
    moments : InputMoments
        Linear layers without input moments get the identity as metric.
    n_shared_blocks : int, default=1
        At most one per step is used.
    n_alternations : int, default=8

    Returns
    -------
    transition : UnifiedTransition
    """
    names = _parameter_shapes(backbone)
    matrices, vectors = {}, {}
    for name, shape in names.items():
        stack = torch.stack([_merged(backbone, interval, name) for interval in intervals])
        is_matrix = len(shape) == 2 and min(shape) > 1
        (matrices if is_matrix else vectors)[name] = stack
    transition = UnifiedTransition(intervals, matrices, vectors, backbone, rank, n_shared_blocks)
    linear = {w: (b, axis) for w, b, _, axis in linear_layers(backbone.blocks[0])}
    for name, stack in matrices.items():
        bias, axis = linear.get(name, (None, 1))
        metric, mean = _step_moments(moments, intervals, name, stack.shape[1 + axis])
        _start_matrix(transition, name, bias, stack, axis, metric, mean, n_alternations)
    return transition.requires_grad_(True)


def _parameter_shapes(backbone):
    shapes = {n: tuple(p.shape) for n, p in backbone.blocks[0].named_parameters()}
    for k, block in enumerate(backbone.blocks):
        if {n: tuple(p.shape) for n, p in block.named_parameters()} != shapes:
            raise BackboneError(
                f"Block {k} has other parameters than block 0, so one transition cannot stand for "
                "both. Use transition='blockwise', or blocks=... to name a stack of equal blocks."
            )
    return shapes


def _merged(backbone, interval, name):
    blocks = backbone.blocks[slice(*interval)]
    return torch.stack([b.get_parameter(name).detach().float() for b in blocks]).mean(0)


def _step_moments(moments, intervals, name, d_in):
    """Return second moments (S, d_in, d_in) and means (S, d_in) of the inputs of `name`."""
    n = len(intervals)
    if (0, name) not in moments.second:
        return torch.eye(d_in).expand(n, -1, -1), torch.zeros(n, d_in)
    second = [torch.stack([moments.second[k, name] for k in range(*i)]).mean(0) for i in intervals]
    mean = [torch.stack([moments.mean[k, name] for k in range(*i)]).mean(0) for i in intervals]
    return torch.stack(second), torch.stack(mean)


@torch.no_grad()
def _start_matrix(transition, name, bias, stack, axis, metric, mean, n_alternations):
    key = _key(name)
    if transition.rank is None:
        transition.shared[key].copy_(stack)
        return
    target = stack if axis == 1 else stack.transpose(1, 2)
    shared, up, down = factorise(
        target, metric.to(target), transition.group, transition.rank, n_alternations
    )
    fitted = shared[transition.group] + up @ down
    if bias is not None:
        error = torch.einsum("soi,si->so", target - fitted, mean.to(target))
        transition.vectors[_key(bias)] += error
    if axis == 0:
        shared, up, down = shared.mT, down.mT, up.mT
    transition.shared[key].copy_(shared)
    transition.up[key].copy_(up)
    transition.down[key].copy_(down)


def factorise(target, metric, group, rank, n_alternations=8):
    """Split per-step matrices into shared ones and low-rank deltas, in the metric of the inputs.

    Parameters
    ----------
    target : Tensor of shape (S, out, in)
    metric : Tensor of shape (S, in, in)
        Second moment of the inputs of each step.
    group : list of int, length S
        Which shared matrix each step uses.
    rank : int
    n_alternations : int, default=8

    Returns
    -------
    shared : Tensor of shape (G, out, in)
    up : Tensor of shape (S, out, rank)
    down : Tensor of shape (S, rank, in)
    """
    target, metric = target.double(), metric.double()
    d_in = target.shape[2]
    # A little of the identity: directions that the data never excite still get sane weights.
    trace = metric.diagonal(dim1=1, dim2=2).mean(1)
    metric = metric + 1e-3 * trace[:, None, None] * torch.eye(d_in).to(metric)
    energy = torch.einsum("soi,sij,soj->s", target, metric, target)
    weighted = metric / energy.clamp_min(1e-30)[:, None, None]
    root, inverse_root = _square_roots(metric)
    low_rank = torch.zeros_like(target)
    index = torch.as_tensor(group, device=target.device)
    shared = target.new_zeros(index.max() + 1, *target.shape[1:])
    for _ in range(n_alternations):
        for g in range(len(shared)):
            rows = index == g
            right = ((target - low_rank)[rows] @ weighted[rows]).sum(0)
            shared[g] = torch.linalg.solve(weighted[rows].sum(0), right.mT).mT
        up, down = _truncate((target - shared[index]) @ root, rank)
        down = down @ inverse_root
        low_rank = up @ down
    return shared.float(), up.float(), down.float()


def _square_roots(metric):
    values, vectors = torch.linalg.eigh(metric)
    values = values.clamp_min(values.amax(1, keepdim=True) * 1e-10)
    root = (vectors * values.sqrt()[:, None]) @ vectors.mT
    return root, (vectors / values.sqrt()[:, None]) @ vectors.mT


def _truncate(matrices, rank):
    """Return the balanced factors of the best rank-`rank` approximation of each matrix."""
    d_out, d_in = matrices.shape[1:]
    small = matrices @ matrices.mT if d_out <= d_in else matrices.mT @ matrices
    kept = min(rank, d_out, d_in)
    values, vectors = torch.linalg.eigh(small)
    values, vectors = values.flip(1)[:, :kept], vectors.flip(2)[:, :, :kept]
    scale = values.clamp_min(1e-30).pow(0.25)[:, None]  # sqrt of the singular values
    if d_out <= d_in:
        up, down = vectors * scale, (vectors / scale).mT @ matrices
    else:
        up, down = matrices @ (vectors / scale), (vectors * scale).mT
    pad = rank - kept
    up, down = nn.functional.pad(up, (0, pad)), nn.functional.pad(down, (0, 0, 0, pad))
    return up, down
