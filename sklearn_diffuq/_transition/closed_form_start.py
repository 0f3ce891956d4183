"""Starting the unified transition from the frozen blocks, in closed form."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._path.input_moments import InputMoments, linear_layers
from sklearn_diffuq._path.time_grid import Interval
from sklearn_diffuq._transition.parameter_stacks import parameter_stacks
from sklearn_diffuq._transition.unified_transition import UnifiedTransition

RIDGE = 1e-3  # share of the identity in the metric: what the data never excite stays sane
N_ALTERNATIONS = 8
N_KRYLOV = 2  # products with the error that add to what a truncation knows of its directions
N_BESIDE = 8  # directions that are followed beside those that are kept


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
    group = shared_groups(intervals, backbone.n_blocks, n_shared_blocks)
    stacks, steps = parameter_stacks(backbone, intervals, group), range(len(intervals))
    return sum(s.size(steps, rank) for s in stacks.values()) + len(steps) * backbone.width


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
    decomposition for ``U_s V_s`` (see `factorise`), where ``C_s`` is the second moment of the
    layer's inputs and ``w_s = 1 / tr(W_s C_s W_s^T)``. Each bias then takes up the mean error. A
    step of several blocks has the parameters of the last one, and starts from the mean over those
    that have them.

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
    group = shared_groups(intervals, backbone.n_blocks, n_shared_blocks)
    transition = UnifiedTransition(intervals, backbone, rank, group).to(backbone.device)
    for kept in (transition.vectors, transition.shared):
        for key in kept.keys() - transition.up.keys():
            blocks = _blocks_of_rows(transition, key)
            kept[key].data.copy_(_merged(transition, key, blocks))
    for key in transition.up:  # last, since the biases take up their errors
        _start_matrix(transition, key, moments)
    return transition.requires_grad_(True)


def _blocks_of_rows(transition: UnifiedTransition, key: str) -> list[list[int]]:
    """Return, for each row of a stack, the blocks of the step that have the parameter."""
    stack, blocks = transition.stacks[key], transition.backbone.blocks
    shapes = [{n: tuple(p.shape) for n, p in block.named_parameters()} for block in blocks]
    return [
        [k for k in range(*transition.intervals[i]) if shapes[k].get(stack.name) == stack.shape]
        for i in stack.steps
    ]


def _merged(transition: UnifiedTransition, key: str, blocks: list[list[int]]) -> Tensor:
    """Return the mean over the blocks of each row, stacked."""
    name, all_blocks = transition.stacks[key].name, transition.backbone.blocks
    found = [[all_blocks[k].get_parameter(name).detach().float() for k in ks] for ks in blocks]
    return torch.stack([torch.stack(row).mean(0) for row in found])


@torch.no_grad()
def _start_matrix(transition: UnifiedTransition, key: str, moments: InputMoments) -> None:
    """Set a shared matrix and its low-rank changes, and let biases take up the error (eq. 2.6)."""
    stack, rank = transition.stacks[key], transition.rank
    assert rank is not None
    blocks = _blocks_of_rows(transition, key)
    layers = linear_layers(transition.backbone.blocks[blocks[0][-1]])
    bias, axis = {name: (b, a) for name, b, _, a in layers}.get(stack.name, (None, 1))
    metric, mean = _step_moments(moments, blocks, stack.name, stack.shape[axis])
    target = _merged(transition, key, blocks)
    target = target if axis == 1 else target.mT
    shared, up, down = factorise(target, metric.to(target), stack.group, rank)
    error = target - (shared[list(stack.group)] + up @ down)
    if axis == 0:
        shared, up, down = shared.mT, down.mT, up.mT
    transition.shared[key].copy_(shared)
    transition.up[key].copy_(up)
    transition.down[key].copy_(down)
    shifts = torch.einsum("soi,si->so", error, mean.to(error))
    for i, shift in zip(stack.steps, shifts, strict=True):
        for other, having in transition.stacks.items():
            if having.name == bias and i in having.steps:
                transition.vectors[other][having.steps.index(i)] += shift


def _step_moments(
    moments: InputMoments, blocks: Sequence[Sequence[int]], name: str, d_in: int
) -> tuple[Tensor, Tensor]:
    """Return second moments (S, d_in, d_in) and means (S, d_in) of the inputs of `name`."""
    n = len(blocks)
    if any((k, name) not in moments.second for some in blocks for k in some):
        return torch.eye(d_in).expand(n, -1, -1), torch.zeros(n, d_in)
    second = [torch.stack([moments.second[k, name] for k in some]).mean(0) for some in blocks]
    mean = [torch.stack([moments.mean[k, name] for k in some]).mean(0) for some in blocks]
    return torch.stack(second), torch.stack(mean)


def factorise(
    target: Tensor,
    metric: Tensor,
    group: Sequence[int],
    rank: int,
    n_alternations: int = N_ALTERNATIONS,
) -> tuple[Tensor, Tensor, Tensor]:
    """Split per-step matrices into shared ones and low-rank deltas (eqs. 2.4, 2.5).

    In float64, on the device of `target`. The answer is the same whenever it is asked for.

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
    target = target.double()
    metric = metric.to(torch.float64, copy=True)
    trace = metric.diagonal(dim1=1, dim2=2).mean(1)
    trace = trace.masked_fill(trace == 0, 1.0)  # a layer that only ever gets zeros
    metric.diagonal(dim1=1, dim2=2).add_(RIDGE * trace[:, None])
    moved = target @ metric
    weight = 1 / (moved * target).sum((1, 2)).clamp_min(1e-30)
    index = torch.as_tensor(group, device=target.device)
    members = [[i for i, g in enumerate(group) if g == n] for n in range(max(group) + 1)]
    weight_of = nn.functional.one_hot(index).T * weight  # (G, S)
    root = torch.linalg.cholesky(torch.tensordot(weight_of, metric, 1))
    whole = torch.cholesky_solve(torch.tensordot(weight_of, moved, 1).mT, root).mT

    def explained(up: Tensor, down: Tensor) -> Tensor:
        """Return the part of the shared matrices that low-rank changes make needless."""
        weighted, moved = weight[:, None, None] * up, down @ metric
        return torch.stack(
            [
                torch.cat(list(weighted[m]), 1)
                @ torch.cholesky_solve(moved[m].flatten(0, 1).mT, root[g]).mT
                for g, m in enumerate(members)
            ]
        )

    shared, directions = whole, _random_directions(target, rank)
    for left in reversed(range(n_alternations)):
        error = target - shared[index]
        directions, values = _leading_directions(error, metric, directions)
        up = directions[:, :, :rank]
        down = up.mT @ error
        if left:
            shared = whole - explained(up, down)
    scale = values[:, :rank].clamp_min(1e-30).pow(0.25)  # square roots of the singular values
    pad = rank - scale.shape[1]
    up = nn.functional.pad(up * scale[:, None], (0, pad))
    down = nn.functional.pad(down / scale[:, :, None], (0, 0, 0, pad))
    return shared.float(), up.float(), down.float()


def _random_directions(target: Tensor, rank: int) -> Tensor:
    """Return directions (S, out, k) to start from, the same ones on every device."""
    shape = *target.shape[:2], min(rank + N_BESIDE, *target.shape[1:])
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return drawn.to(target.device)


def _leading_directions(error: Tensor, metric: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return the leading left singular vectors of ``error @ metric^{1/2}``, and squared values.

    They are the eigenvectors of ``error @ metric @ error.mT``, so no square root is needed. They
    are sought among combinations of approximately `known` ones and their products with that matrix
    (a block Krylov space), or exactly where these are no fewer than all there are.

    Parameters
    ----------
    error : Tensor of shape (S, out, in)
    metric : Tensor of shape (S, in, in)
    known : Tensor of shape (S, out, k)

    Returns
    -------
    directions : Tensor of shape (S, out, k)
        Orthonormal, the leading one first.
    values : Tensor of shape (S, k)
    """
    (d_out, d_in), k = error.shape[1:], known.shape[2]
    if (N_KRYLOV + 1) * k < min(d_out, d_in):
        space = [known]
        for _ in range(N_KRYLOV):
            product = error @ (metric @ (error.mT @ space[-1]))
            space.append(torch.linalg.qr(product).Q)
        basis = torch.linalg.qr(torch.cat(space, 2)).Q
        inside = basis.mT @ error
    elif d_out > d_in:
        basis = torch.linalg.qr(error).Q
        inside = basis.mT @ error
    else:
        basis, inside = None, error
    values, vectors = torch.linalg.eigh(inside @ metric @ inside.mT)
    values, vectors = values.flip(1)[:, :k], vectors.flip(2)[:, :, :k]
    return vectors if basis is None else basis @ vectors, values
