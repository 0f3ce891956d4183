"""Starting the unified transition from the frozen blocks, in closed form."""

import torch
from torch import nn

from sklearn_diffuq._path.statistics import linear_layers
from sklearn_diffuq._transition.unified_transition import UnifiedTransition, _key
from sklearn_diffuq.exceptions import BackboneError


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
