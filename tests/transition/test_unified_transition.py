"""The unified transition: closed-form start against independent answers."""

import copy
import pickle
import threading

import pytest
import torch
from timing import operations
from tiny_backbones import ALL, UNEQUAL
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from sklearn_diffuq._path.statistics import collect_statistics
from sklearn_diffuq._path.time_grid import steps_of, time_grid
from sklearn_diffuq._transition.batched_steps import batched_steps
from sklearn_diffuq._transition.closed_form_start import (
    factorise,
    shared_groups,
    transition_size,
    unified_transition,
)
from sklearn_diffuq._transition.unified_transition import UnifiedTransition

EVERY = ALL | UNEQUAL


def _start(backbone, batch, n_steps, rank, **kwargs):
    intervals = steps_of(time_grid(backbone.n_blocks, n_steps))
    statistics = collect_statistics(backbone, [batch], intervals, with_moments=True)
    return unified_transition(backbone, intervals, rank, statistics.moments, **kwargs)


def _follow(backbone, transition, batch, grid):
    h, context = backbone.embed(batch)
    for interval in steps_of(grid):
        h = transition(h, interval, context)
    return backbone.readout(h, context)


def _logits(backbone, transition, batch, grid=None):
    with backbone.frozen(), torch.no_grad():
        return _follow(backbone, transition, batch, grid or _grid(transition))


def _grid(transition):
    """Return the one time grid of a transition that knows no other."""
    return (0, *(stop for _, stop in transition.intervals))


@pytest.mark.parametrize("name", EVERY)
def test_full_rank_with_one_step_per_block_is_the_backbone(name):
    backbone, batch = EVERY[name]()
    transition = _start(backbone, batch, backbone.n_blocks, None)
    with backbone.frozen(), torch.no_grad():
        expected = backbone.logits(batch)
    assert torch.equal(_logits(backbone, transition, batch), expected)
    n_blocks = sum(p.numel() for b in backbone.blocks for p in b.parameters())
    n_parameters = transition.n_parameters(_grid(transition))
    assert n_parameters - transition.log_variance.numel() == n_blocks


@pytest.mark.parametrize("name", EVERY)
def test_low_rank_of_full_width_reproduces_the_backbone(name):
    backbone, batch = EVERY[name]()
    transition = _start(backbone, batch, backbone.n_blocks, 16)
    with backbone.frozen(), torch.no_grad():
        expected = backbone.logits(batch)
    torch.testing.assert_close(_logits(backbone, transition, batch), expected, atol=1e-4, rtol=1e-4)


def test_fidelity_grows_with_rank():
    backbone, batch = ALL["vit"](32)
    with backbone.frozen(), torch.no_grad():
        expected = backbone.logits(batch)
    errors = [
        float((_logits(backbone, _start(backbone, batch, 4, r), batch) - expected).square().mean())
        for r in (1, 8, 14)
    ]
    assert errors[0] > errors[1] > 4 * errors[2]


def _weighted_error(target, metric, group, shared, up, down):
    fitted = shared.double()[group] + up.double() @ down.double()
    weight = 1 / torch.einsum("soi,sij,soj->s", target, metric, target)
    error = target - fitted
    return float((weight * torch.einsum("soi,sij,soj->s", error, metric, error)).sum())


@pytest.mark.parametrize("shape", [(3, 5, 8), (3, 8, 5)])
def test_factorisation_is_a_local_optimum_that_gradients_cannot_improve(shape):
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(shape, generator=generator, dtype=torch.float64)
    root = torch.randn(3, shape[2], shape[2], generator=generator, dtype=torch.float64)
    metric = root @ root.mT
    group = [0, 0, 0]
    factors = factorise(target, metric, group, rank=1, n_alternations=300)
    found = _weighted_error(target, metric, group, *factors)
    free = [f.double().requires_grad_() for f in factors]
    optimiser = torch.optim.LBFGS(free, max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        fitted = free[0][group] + free[1] @ free[2]
        weight = 1 / torch.einsum("soi,sij,soj->s", target, metric, target)
        error = target - fitted
        loss = (weight * torch.einsum("soi,sij,soj->s", error, metric, error)).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    assert found <= 1.02 * float(closure().detach())


def _by_square_roots(target, metric, rank, n_alternations=8):
    """Alternate with exact square roots and singular value decompositions, step by step."""
    trace = metric.diagonal(dim1=1, dim2=2).mean(1)
    metric = metric + 1e-3 * trace[:, None, None] * torch.eye(metric.shape[1]).double()
    weight = 1 / torch.einsum("soi,sij,soj->s", target, metric, target)
    low_rank = torch.zeros_like(target)
    for _ in range(n_alternations):
        right = sum(w * (t - x) @ c for w, t, x, c in zip(weight, target, low_rank, metric))
        total = sum(w * c for w, c in zip(weight, metric))
        shared = right @ torch.linalg.inv(total)
        for s, c in enumerate(metric):
            values, vectors = torch.linalg.eigh(c)
            root, inverse = (vectors * values**p @ vectors.T for p in (0.5, -0.5))
            u, sigma, v = torch.linalg.svd((target[s] - shared) @ root, full_matrices=False)
            low_rank[s] = (u[:, :rank] * sigma[:rank]) @ v[:rank] @ inverse
    eye = torch.eye(target.shape[1]).expand(len(target), -1, -1)
    return _weighted_error(target, metric, [0] * len(target), shared[None], eye, low_rank)


@pytest.mark.parametrize("shape", [(4, 48, 64), (4, 64, 48)])
@pytest.mark.parametrize("rank", [1, 4, 8, 20])
def test_the_factorisation_is_as_good_as_with_exact_square_roots(shape, rank):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    s, d_out, d_in = shape
    target = normal(1, d_out, d_in) + normal(*shape) * torch.linspace(2, 0.1, d_in).double()
    x = normal(s, 200, d_in) * torch.logspace(1, -1, d_in).double()
    metric = x.mT @ x / 200
    torch.manual_seed(5)
    state = torch.get_rng_state()
    shared, up, down = factorise(target, metric, [0] * s, rank)
    assert torch.equal(torch.get_rng_state(), state)
    ridge = 1e-3 * metric.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(d_in).double()
    found = _weighted_error(target, metric + ridge, [0] * s, shared, up, down)
    assert found <= (1 + 1e-3) * _by_square_roots(target, metric, rank)
    again = factorise(target, metric, [0] * s, rank)
    assert all(map(torch.equal, again, (shared, up, down)))
    # balanced: both factors have the singular values' square roots, the largest first
    lengths = up.square().sum(1)
    moved = torch.einsum("sri,sij,srj->sr", down.double(), metric + ridge, down.double())
    torch.testing.assert_close(lengths.double(), moved, rtol=1e-3, atol=1e-6)
    assert (lengths.diff(dim=1) <= 1e-5).all()


def test_the_start_of_a_wide_layer_takes_few_operations():
    """Square roots of the metrics alone would take about ten times the cube of their size each."""
    s, d_out, d_in, rank = 3, 64, 256, 8
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(s, d_out, d_in, generator=generator)
    x = torch.randn(s, 300, d_in, generator=generator)
    decompositions = []

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "linalg_eigh" in func.__name__ or "linalg_svd" in func.__name__:
                decompositions.append(args[0].shape[-1])
            return func(*args, **kwargs or {})

    with Spy(), FlopCounterMode(display=False) as counter:
        factorise(target, x.mT @ x, [0] * s, rank)
    assert max(decompositions) == 3 * (rank + 8)
    assert len(decompositions) == 8
    products = 2 * s * d_in * (d_out + 8 * 6 * (rank + 8)) * d_in  # with the metrics
    assert counter.get_total_flops() < 2.5 * products


def test_metric_of_the_inputs_beats_plain_singular_values():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(2, 6, 6, generator=generator)
    scale = torch.diag(torch.tensor([10.0, 5, 1, 0.1, 0.1, 0.1]))
    metric = torch.stack([scale, scale])
    aware = factorise(target, metric, [0, 0], 1)
    plain = factorise(target, torch.eye(6).expand(2, 6, 6), [0, 0], 1)
    args = (target.double(), metric.double(), [0, 0])
    assert _weighted_error(*args, *aware) < 0.9 * _weighted_error(*args, *plain)


def test_groups_share_consecutive_steps():
    backbone, batch = ALL["vit"]()
    transition = _start(backbone, batch, 4, 1, n_shared_blocks=2)
    assert transition.group == [0, 0, 1, 1]
    assert {len(p) for p in transition.shared.values()} == {2}


@pytest.mark.parametrize("name", EVERY)
def test_gradients_reach_every_parameter_of_the_mean(name):
    backbone, batch = EVERY[name]()
    transition = _start(backbone, batch, 2, 2)
    with backbone.frozen():
        _follow(backbone, transition, batch, _grid(transition)).square().sum().backward()
        assert all(p.grad is None for p in backbone.module.parameters())
    for key, parameter in transition.named_parameters():
        # A key bias shifts all attention scores of a query alike: softmax removes it.
        if key != "log_variance" and "key/bias" not in key:
            assert parameter.grad is not None, key
            assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", ["bert", *UNEQUAL])
def test_pickle_keeps_the_result(name):
    backbone, batch = EVERY[name]()
    transition = _start(backbone, batch, 3, 2)
    expected = _logits(backbone, transition, batch)
    copy = pickle.loads(pickle.dumps(transition))
    assert torch.equal(_logits(backbone, copy, batch), expected)


def test_bias_takes_up_the_mean_error():
    backbone, batch = ALL["vit"](64)
    transition = _start(backbone, batch, 4, 1)
    moments = collect_statistics(backbone, [batch], steps_of(time_grid(4, 4)), True).moments
    for step in range(4):
        x = moments.mean[step, "mlp.fc1.weight"]
        block = backbone.blocks[step].mlp.fc1
        expected = block.weight @ x + block.bias
        weight = transition.parameter("mlp/fc1/weight", step)
        found = weight @ x + transition.vectors["mlp/fc1/bias"][step]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_grids_share_the_network_and_keep_their_own_steps():
    backbone, batch = ALL["vit"]()
    grids = [time_grid(4, n) for n in (4, 2, 1)]
    intervals = sorted({interval for grid in grids for interval in steps_of(grid)})
    moments = collect_statistics(backbone, [batch], intervals, True).moments
    transition = unified_transition(backbone, intervals, 2, moments)
    for grid in grids[:2]:
        alone = unified_transition(backbone, steps_of(grid), 2, moments)
        assert transition.n_parameters(grid) == alone.n_parameters(grid)
        assert alone.n_parameters(grid) == sum(p.numel() for p in alone.parameters())
    before = [_logits(backbone, transition, batch, grid) for grid in grids]
    assert not torch.equal(before[0], before[1])
    with torch.no_grad():  # a channel: what shifts all of them alike, the norm takes away
        transition.vectors["mlp/fc2/bias"][transition.intervals.index((0, 2)), 0] += 1
    after = [_logits(backbone, transition, batch, grid) for grid in grids]
    changed = [not torch.equal(a, b) for a, b in zip(before, after)]
    assert changed == [False, True, False]
    with torch.no_grad():
        transition.shared["mlp/fc2/weight"] += 0.1
    last = [_logits(backbone, transition, batch, grid) for grid in grids]
    assert not any(torch.equal(a, b) for a, b in zip(after, last))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("n_shared_blocks", [1, 2, 9])
def test_the_size_is_known_before_the_transition_is_built(name, n_shared_blocks):
    backbone, batch = EVERY[name]()
    for n_steps in (2, 3):
        transition = _start(backbone, batch, n_steps, 2, n_shared_blocks=n_shared_blocks)
        size = transition_size(backbone, transition.intervals, 2, n_shared_blocks)
        assert size == sum(p.numel() for p in transition.parameters())
        assert size == transition.n_parameters(_grid(transition))


def test_groups_are_numbered_from_zero_without_gaps():
    for n_blocks in range(1, 13):
        for n_steps in range(1, n_blocks + 1):
            for n_shared in range(1, n_blocks + 3):
                group = shared_groups(steps_of(time_grid(n_blocks, n_steps)), n_blocks, n_shared)
                assert len(group) == n_steps
                assert group == sorted(group)
                assert set(group) == set(range(max(group) + 1))
                assert max(group) < n_shared


def test_variances_are_those_of_the_steps_and_bounded():
    backbone, batch = ALL["vit"]()
    transition = _start(backbone, batch, 2, 2)
    with torch.no_grad():
        transition.log_variance.copy_(torch.linspace(-40, 40, 32).reshape(2, 16))
    assert transition.variances().shape == (2, 16)
    assert not transition.variances().requires_grad
    assert torch.equal(transition.variances_of(transition.intervals), transition.variances())
    last_first = transition.variances_of(transition.intervals[::-1])
    assert torch.equal(last_first, transition.variances().flip(0))
    low, high = transition.variances().aminmax()
    torch.testing.assert_close(torch.stack([low, high]).log(), torch.tensor([-16.0, 8.0]))


@pytest.mark.parametrize("name", UNEQUAL)
@pytest.mark.parametrize("rank", [None, 2])
def test_unequal_blocks_are_saved(name, rank):
    backbone, batch = EVERY[name]()
    transition = _start(backbone, batch, 2, rank)
    again = UnifiedTransition.from_state(transition.to_state(), backbone)
    assert torch.equal(_logits(backbone, again, batch), _logits(backbone, transition, batch))


def test_what_blocks_have_in_common_is_shared_and_the_rest_is_their_own():
    backbone, batch = EVERY["unequal-vit"]()
    transition = _start(backbone, batch, 5, 2)
    n_shared = {key: len(matrices) for key, matrices in transition.shared.items()}
    changed = {key: len(matrices) for key, matrices in transition.up.items()}
    first, second = "mlp/fc{}/weight", "mlp/fc{}/weight@{}"
    expected = {
        "attn/qkv/weight": 5,
        "attn/proj/weight": 5,
        first.format(1): 2,
        first.format(2): 2,
        second.format(1, "24x16"): 2,
        second.format(2, "16x24"): 2,
    }
    own = [second.format(1, "20x16"), second.format(2, "16x20")]
    assert changed == expected
    assert n_shared == dict.fromkeys([*expected, *own], 1)
    assert torch.equal(transition.parameter(own[0], 4), backbone.blocks[4].mlp.fc1.weight)
    norms = {len(v) for key, v in transition.vectors.items() if key.startswith("norm")}
    assert norms == {5}
    with torch.no_grad():  # a matrix that two steps share is not one of the others
        before = [_logits_of_step(backbone, transition, batch, k) for k in range(5)]
        transition.shared["mlp/fc1/weight@24x16"] += 0.1
        after = [_logits_of_step(backbone, transition, batch, k) for k in range(5)]
    assert [not torch.equal(a, b) for a, b in zip(before, after)] == [0, 0, 1, 1, 0]


def _logits_of_step(backbone, transition, batch, k):
    with backbone.frozen():
        h, context = backbone.embed(batch)
        return transition(h, (k, k + 1), context)


def test_a_step_of_unequal_blocks_is_the_mean_over_those_that_have_a_parameter():
    backbone, batch = EVERY["unequal-vit"]()
    blocks = backbone.blocks
    moments = collect_statistics(backbone, [batch], [(0, 5)], True).moments
    transition = unified_transition(backbone, [(0, 3), (3, 5), (0, 5)], None, moments)
    mean = (blocks[0].norm1.weight + blocks[1].norm1.weight + blocks[2].norm1.weight) / 3
    torch.testing.assert_close(transition.parameter("norm1/weight", 0), mean)
    for step, last, key in [(0, 2, ""), (1, 4, "@20x16"), (2, 4, "@20x16")]:
        found = transition.parameter("mlp/fc1/weight" + key, step)
        torch.testing.assert_close(found, blocks[last].mlp.fc1.weight)


def _frozen_logits(backbone, transition, batch):
    return _logits(backbone, transition.requires_grad_(False), batch)


@pytest.mark.parametrize("name", EVERY)
def test_a_frozen_step_dispatches_what_a_block_of_the_wrapped_model_does(name):
    backbone, batch = EVERY[name]()
    transition = _start(backbone, batch, backbone.n_blocks, 2).requires_grad_(False)
    with backbone.frozen(), torch.no_grad():
        h, context = backbone.embed(batch)
        for _ in range(2):
            counts = [operations(lambda: transition(h, (0, 1), context)) for _ in range(2)]
        assert counts[1] == operations(lambda: backbone.block(0, h, context))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("n_shared_blocks", [1, 2])
def test_merged_steps_are_the_matrices_written_out(name, n_shared_blocks):
    backbone, batch = EVERY[name]()
    transition = _start(backbone, batch, 3, 2, n_shared_blocks=n_shared_blocks)
    for key, stack in transition.stacks.items():
        for row, step in enumerate(stack.steps):
            expected = (transition.vectors if key in transition.vectors else transition.shared)[key]
            if key in transition.up:
                delta = transition.up[key][row] @ transition.down[key][row]
                expected = expected[stack.group[row]] + delta
            else:
                expected = expected[row]
            assert torch.equal(transition.parameter(key, step), expected)
    trained = _logits(backbone, transition.merged(), batch, _grid(transition))
    assert torch.equal(_frozen_logits(backbone, transition, batch), trained)


def test_what_is_merged_follows_the_parameters():
    backbone, batch = ALL["bert"]()
    transition = _start(backbone, batch, 3, 2)
    before = _frozen_logits(backbone, transition, batch)
    state = {name: value.clone() for name, value in transition.state_dict().items()}
    with torch.no_grad():
        transition.shared["output/dense/weight"] += 0.1
    changed = _frozen_logits(backbone, transition, batch)
    assert not torch.equal(changed, before)
    transition.load_state_dict(state)
    assert torch.equal(_frozen_logits(backbone, transition, batch), before)
    transition.shared["output/dense/weight"] = torch.nn.Parameter(
        state["shared.output/dense/weight"] + 0.1, requires_grad=False
    )
    assert torch.equal(_frozen_logits(backbone, transition, batch), changed)
    transition.double().float()  # moved and back
    assert torch.equal(_frozen_logits(backbone, transition, batch), changed)
    transition.requires_grad_(True)
    optimiser = torch.optim.AdamW(transition.parameters(), lr=0.1, fused=True)
    with backbone.frozen():
        _follow(backbone, transition, batch, _grid(transition)).sum().backward()
    optimiser.step()  # does not count its changes
    trained = _logits(backbone, transition, batch)
    assert not torch.equal(trained, changed)
    assert torch.equal(_frozen_logits(backbone, transition, batch), trained)


def test_what_is_merged_is_neither_saved_nor_copied():
    backbone, batch = ALL["bert"]()
    transition = _start(backbone, batch, 3, 2)
    sizes = [len(pickle.dumps(transition))]
    expected = _frozen_logits(backbone, transition, batch)
    sizes.append(len(pickle.dumps(transition)))
    assert sizes[1] == pytest.approx(sizes[0], abs=200)  # flags of the parameters
    assert len(transition.state_dict()) == len(list(transition.parameters()))
    other = copy.deepcopy(transition)
    with torch.no_grad():
        other.shared["output/dense/weight"] += 0.1
    assert not torch.equal(_frozen_logits(backbone, other, batch), expected)
    assert torch.equal(_frozen_logits(backbone, transition, batch), expected)


def test_threads_share_what_is_merged():
    backbone, batch = ALL["vit"]()
    transition = _start(backbone, batch, 4, 2).requires_grad_(False)
    expected = _logits(backbone, pickle.loads(pickle.dumps(transition)), batch)
    found = [None] * 4

    def predict(i):
        found[i] = _logits(backbone, transition, batch)

    threads = [threading.Thread(target=predict, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(logits, expected) for logits in found)


def test_a_layer_that_only_gets_zeros_has_a_start():
    target = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    shared, up, down = factorise(target, torch.zeros(2, 4, 4), [0, 0], 3)
    torch.testing.assert_close(shared[[0, 0]] + up @ down, target)


def test_a_parameter_with_several_names_is_one_parameter():
    backbone, batch = ALL["bert"]()
    for block in backbone.blocks:
        block.attention.self.key.weight = block.attention.self.query.weight
    transition = _start(backbone, batch, backbone.n_blocks, None)
    with backbone.frozen(), torch.no_grad():
        expected = backbone.logits(batch)
    torch.testing.assert_close(_logits(backbone, transition, batch), expected)
    frozen = transition.requires_grad_(False)
    torch.testing.assert_close(_logits(backbone, frozen, batch), expected)
    assert batched_steps(transition, _grid(transition), batch) is None
