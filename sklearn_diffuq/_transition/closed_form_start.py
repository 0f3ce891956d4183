"""Starting the unified transition from the frozen blocks, in closed form."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._path.input_moments import InputMoments, linear_layers
from sklearn_diffuq._path.time_grid import Interval
from sklearn_diffuq._transition.unified_transition import UnifiedTransition, key_of
from sklearn_diffuq.exceptions import BackboneError

RIDGE = 1e-3  # share of the identity in the metric: what the data never excite stays sane
N_ALTERNATIONS = 8


def shared_groups(intervals: Sequence[Interval], n_blocks: int, n_shared_blocks: int) -> list[int]:
    """Return which shared matrices each step uses: consecutive steps share one.

    Examples
    --------
    >>> from sklearn_diffuq._transition.closed_form_start import shared_groups
    >>> shared_groups([(0, 3), (3, 5), (5, 8)], n_blocks=8, n_shared_blocks=3)
    [0, 1, 1]
    """
    thirds = [start * n_shared_blocks // n_blocks for start, _ in intervals]
    numbers = {group: number for number, group in enumerate(sorted(set(thirds)))}
    return [numbers[group] for group in thirds]


def transition_size(
    backbone: Backbone, intervals: Sequence[Interval], rank: int, n_shared_blocks: int
) -> int:
    """Return the number of parameters of a unified transition, without building it."""
    n_shared = len(set(shared_groups(intervals, backbone.n_blocks, n_shared_blocks)))
    n, size = len(intervals), len(intervals) * backbone.width  # the variances
    for shape in parameter_shapes(backbone).values():
        if is_matrix(shape):
            size += n_shared * shape[0] * shape[1] + n * rank * (shape[0] + shape[1])
        else:
            size += n * int(torch.Size(shape).numel())
    return size


def unified_transition(
    backbone: Backbone,
    intervals: Sequence[Interval],
    rank: int | None,
    moments: InputMoments,
    n_shared_blocks: int = 1,
) -> UnifiedTransition:
    """Build a `UnifiedTransition` and start it from the frozen blocks, in closed form (eq. 2.3).

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

    Returns
    -------
    transition : UnifiedTransition
        On the device of the backbone.
    """
    matrices: dict[str, Tensor] = {}
    vectors: dict[str, Tensor] = {}
    for name, shape in parameter_shapes(backbone).items():
        stack = torch.stack([_merged(backbone, interval, name) for interval in intervals])
        (matrices if is_matrix(shape) else vectors)[name] = stack
    group = shared_groups(intervals, backbone.n_blocks, n_shared_blocks)
    transition = UnifiedTransition(intervals, matrices, vectors, backbone, rank, group)
    layers = {weight: (bias, axis) for weight, bias, _, axis in linear_layers(backbone.blocks[0])}
    for name, stack in matrices.items():
        if rank is None:
            transition.shared[key_of(name)].data.copy_(stack)
            continue
        bias, axis = layers.get(name, (None, 1))
        metric, mean = _step_moments(moments, intervals, name, stack.shape[1 + axis])
        _start_matrix(transition, name, stack, axis, metric)
        if bias is not None:
            _correct_bias(transition, name, bias, stack, axis, mean)
    return transition.requires_grad_(True).to(backbone.device)


def is_matrix(shape: Sequence[int]) -> bool:
    """Tell whether a parameter of this shape gets low-rank changes, and not a copy per step."""
    return len(shape) == 2 and min(shape) > 1


def parameter_shapes(backbone: Backbone) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the parameters of a block; all blocks must have the same."""
    shapes = {n: tuple(p.shape) for n, p in backbone.blocks[0].named_parameters()}
    for k, block in enumerate(backbone.blocks):
        if {n: tuple(p.shape) for n, p in block.named_parameters()} != shapes:
            raise BackboneError(
                f"Block {k} has other parameters than block 0, so one transition cannot stand for "
                "both. Use transition='blockwise', or blocks=... to name a stack of equal blocks."
            )
    return shapes


def _merged(backbone: Backbone, interval: Interval, name: str) -> Tensor:
    blocks = backbone.blocks[slice(*interval)]
    return torch.stack([b.get_parameter(name).detach().float() for b in blocks]).mean(0)


def _step_moments(
    moments: InputMoments, intervals: Sequence[Interval], name: str, d_in: int
) -> tuple[Tensor, Tensor]:
    """Return second moments (S, d_in, d_in) and means (S, d_in) of the inputs of `name`."""
    n = len(intervals)
    if (0, name) not in moments.second:
        return torch.eye(d_in).expand(n, -1, -1), torch.zeros(n, d_in)
    second = [torch.stack([moments.second[k, name] for k in range(*i)]).mean(0) for i in intervals]
    mean = [torch.stack([moments.mean[k, name] for k in range(*i)]).mean(0) for i in intervals]
    return torch.stack(second), torch.stack(mean)


@torch.no_grad()
def _start_matrix(
    transition: UnifiedTransition, name: str, stack: Tensor, axis: int, metric: Tensor
) -> None:
    """Set the shared matrix and the low-rank changes; `axis` is the input axis of the weight."""
    key, rank = key_of(name), transition.rank
    assert rank is not None
    target = stack if axis == 1 else stack.mT
    shared, up, down = factorise(target, metric.to(target), transition.group, rank)
    if axis == 0:
        shared, up, down = shared.mT, down.mT, up.mT
    transition.shared[key].copy_(shared)
    transition.up[key].copy_(up)
    transition.down[key].copy_(down)


@torch.no_grad()
def _correct_bias(
    transition: UnifiedTransition, name: str, bias: str, stack: Tensor, axis: int, mean: Tensor
) -> None:
    """Let the biases take up the mean error on inputs of mean (S, d_in); eq. 2.6."""
    key = key_of(name)
    low_rank = transition.up[key] @ transition.down[key]
    fitted = transition.shared[key][transition.group] + low_rank
    error = stack - fitted if axis == 1 else (stack - fitted).mT
    transition.vectors[key_of(bias)] += torch.einsum("soi,si->so", error, mean.to(error))


def factorise(
    target: Tensor,
    metric: Tensor,
    group: Sequence[int],
    rank: int,
    n_alternations: int = N_ALTERNATIONS,
) -> tuple[Tensor, Tensor, Tensor]:
    """Split per-step matrices into shared ones and low-rank deltas (eqs. 2.4, 2.5).

    Parameters
    ----------
    target : Tensor of shape (S, out, in)
    metric : Tensor of shape (S, in, in)
        Second moment of the inputs of each step; it gets a ridge (eq. 2.2).
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
    trace = metric.diagonal(dim1=1, dim2=2).mean(1)
    metric = metric + RIDGE * trace[:, None, None] * torch.eye(d_in).to(metric)
    energy = torch.einsum("soi,sij,soj->s", target, metric, target)
    weighted = metric / energy.clamp_min(1e-30)[:, None, None]
    root, inverse_root = _square_roots(metric)
    low_rank = torch.zeros_like(target)
    index = torch.as_tensor(group, device=target.device)
    shared = target.new_zeros(max(group) + 1, *target.shape[1:])
    for _ in range(n_alternations):
        for g in range(len(shared)):
            rows = index == g
            right = ((target - low_rank)[rows] @ weighted[rows]).sum(0)
            shared[g] = torch.linalg.solve(weighted[rows].sum(0), right.mT).mT
        up, down = _truncate((target - shared[index]) @ root, rank)
        down = down @ inverse_root
        low_rank = up @ down
    return shared.float(), up.float(), down.float()


def _square_roots(metric: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(metric)
    values = values.clamp_min(values.amax(1, keepdim=True) * 1e-10)
    root = (vectors * values.sqrt()[:, None]) @ vectors.mT
    return root, (vectors / values.sqrt()[:, None]) @ vectors.mT


def _truncate(matrices: Tensor, rank: int) -> tuple[Tensor, Tensor]:
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
