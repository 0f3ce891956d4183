"""The objective against sums written out, and what each stage reaches."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_backbones import ALL
from tiny_objective import losses_of, objective_of
from torch.utils._python_dispatch import TorchDispatchMode

from sklearn_diffuq._path.covariance import NoiseScales
from sklearn_diffuq._path.mean import BlockwiseMean
from sklearn_diffuq._transition import objective as objective_module
from sklearn_diffuq._transition.objective import (
    PERTURBED_SHARE,
    VARIANCE_FLOOR,
    rolled_out_r2,
)


@pytest.fixture
def no_perturbation(monkeypatch):
    monkeypatch.setattr(objective_module, "PERTURBED_SHARE", 0.0)


@pytest.mark.usefixtures("no_perturbation")
@pytest.mark.parametrize("name", ALL)
def test_an_exact_transition_has_no_path_loss_but_its_own_variance(name):
    objective = objective_of(name, rank=None)
    variance = objective.transition.variances() / objective.covariance.token_variances
    ratio = VARIANCE_FLOOR / (VARIANCE_FLOOR + variance)
    expected = float((0.5 * (ratio - 1 - ratio.log())).mean())
    assert float(losses_of(objective, 3)["path"]) == pytest.approx(expected, rel=1e-3)  # stage B
    losses = losses_of(objective, 9)  # stage C without noise
    assert float(losses["path"]) == pytest.approx(expected, rel=1e-3)


def test_a_share_of_the_rows_starts_perturbed_and_is_drawn_to_the_unperturbed_path():
    objective = objective_of("vit", rank=None)
    h = torch.randn(400, 3, 16, generator=torch.Generator().manual_seed(0))
    started = objective_module._some_perturbed(h, None, torch.Generator().manual_seed(0))
    changed = (started - h).abs().amax((1, 2)) > 0
    assert float(changed.double().mean()) == pytest.approx(PERTURBED_SHARE, abs=0.06)
    quiet = float(losses_of(objective_of("vit", rank=None), 3)["path"])
    losses = [float(losses_of(objective, 9, rows=[i])["path"]) for i in range(6)]
    assert all(loss >= quiet - 1e-5 for loss in losses)  # an exact transition errs on these alone


@pytest.mark.usefixtures("no_perturbation")
def test_rolled_out_losses_are_those_of_the_averaged_probabilities():
    objective = objective_of(rank=None)
    rows = np.arange(4)
    losses = losses_of(objective, 9, rows)
    backbone = objective.backbone
    with backbone.frozen(), torch.no_grad():
        logits = backbone.logits(objective.training.inputs.batch(rows)).double()
    y = objective.training.y[rows]
    label = torch.nn.functional.cross_entropy(logits, y)
    teacher, student = torch.softmax(logits / 1.7, 1), torch.softmax(logits, 1)
    distillation = (teacher * (teacher.log() - student.log())).sum(1).mean()
    assert float(losses["label"]) == pytest.approx(float(label), rel=1e-4)
    assert float(losses["distillation"]) == pytest.approx(float(distillation), rel=1e-3)
    total = losses["path"] + losses["label"] + losses["distillation"]
    assert float(losses["loss"].detach()) == pytest.approx(float(total), rel=1e-5)


@pytest.mark.parametrize("zeroed", ["path_weight", "distillation_weight", "label_weight"])
def test_each_weight_switches_its_loss_off(zeroed):
    losses = losses_of(objective_of(**{zeroed: 0.0}), 9)
    name = zeroed.removesuffix("_weight")
    others = sum(float(v) for k, v in losses.items() if k not in ("loss", name))
    assert float(losses["loss"].detach()) == pytest.approx(others, rel=1e-5)


def test_the_losses_of_a_pair_of_paths_are_those_of_their_mean_probabilities():
    objective = objective_of(scales=NoiseScales(2.0, 2.0, 0.0))
    ends = []
    readout = objective.backbone.readout
    objective.backbone.readout = lambda h, context: ends.append(readout(h, context)) or ends[-1]
    losses = losses_of(objective, 9)
    p = torch.softmax(ends[0].detach().double().unflatten(0, (2, 4)), -1)
    assert (p[0] - p[1]).abs().max() > 0.01
    p = p.mean(0)
    y = objective.training.y[:4]
    assert float(losses["label"]) == pytest.approx(float(-p[range(4), y].log().mean()), rel=1e-5)
    with objective.backbone.frozen(), torch.no_grad():
        teacher = objective.backbone.logits(objective.training.inputs.batch(np.arange(4)))
    q = torch.softmax(teacher.double() / 1.7, 1)
    divergence = (q * (q / p).log()).sum(1).mean()
    assert float(losses["distillation"]) == pytest.approx(float(divergence), rel=1e-4)


def test_a_pair_of_paths_has_opposite_draws():
    pair = objective_module._antithetic((3, 2), 2, torch.Generator().manual_seed(0))
    assert torch.equal(pair[:3], -pair[3:])
    assert len(objective_module._antithetic((3, 2), 1, torch.Generator())) == 3


def test_noise_reaches_the_rolled_out_loss():
    quiet = float(losses_of(objective_of(), 9)["label"])
    noisy = float(losses_of(objective_of(scales=NoiseScales(1.0, 1.0, 0.0)), 9)["label"])
    assert abs(noisy - quiet) > 1e-4


@pytest.mark.usefixtures("no_perturbation")
@pytest.mark.parametrize("epoch", [3, 9])
def test_a_weight_counts_as_repetition(epoch):
    weighted = losses_of(objective_of(sample_weight=[3.0, 1, 2, 2, 2, 2]), epoch, rows=(0, 1))
    repeated = losses_of(objective_of(), epoch, rows=(0, 0, 0, 1))
    assert float(weighted["path"]) == pytest.approx(float(repeated["path"]), rel=1e-4)


@pytest.mark.usefixtures("no_perturbation")
@pytest.mark.parametrize("epoch", [3, 9])
def test_a_batch_of_light_rows_counts_less(epoch):
    light = losses_of(
        objective_of(sample_weight=[0.5, 0.5, 1.25, 1.25, 1.25, 1.25]), epoch, rows=(0, 1)
    )
    plain = losses_of(objective_of(), epoch, rows=(0, 1))
    assert float(light["loss"].detach()) == pytest.approx(float(plain["loss"].detach()) / 2)


def test_stages_train_the_transition_and_never_the_backbone():
    for epoch in (0, 3, 9):
        objective = objective_of()
        with objective.backbone.frozen():
            losses = objective(np.arange(4), epoch, torch.Generator().manual_seed(0))
            losses["loss"].backward()
            assert all(p.grad is None for p in objective.backbone.module.parameters())
        assert objective.transition.log_variance.grad.abs().sum() > 0


def test_rolled_out_r2_is_one_for_the_frozen_path_and_less_for_another():
    objective = objective_of(rank=1)
    backbone = objective.backbone
    with backbone.frozen():
        h, context = backbone.embed(objective.training.inputs.batch(np.arange(6)))
        transition = objective.transition
        teacher, (grid,) = BlockwiseMean(backbone), objective.grids
        states = objective.teacher.states(grid, h, context)
        assert rolled_out_r2(teacher, grid, states, context) == [1.0] * 3
        assert max(rolled_out_r2(transition, grid, states, context)) < 0.999


def test_batches_take_turns_at_the_time_grids():
    objective = objective_of("vit", counts=(4, 2, 1))
    generator = torch.Generator().manual_seed(0)
    reached = torch.zeros(len(objective.transition.intervals))
    with objective.backbone.frozen():
        for _ in range(12):
            objective(np.arange(4), 0, generator)["loss"].backward()
            gradient = objective.transition.log_variance.grad.abs().sum(1)
            assert 1 <= (gradient > 0).sum() <= 4  # those of one grid
            reached += gradient > 0
            objective.transition.log_variance.grad = None
    assert torch.all(reached > 0)


@pytest.mark.parametrize("epoch", [0, 3, 9])
def test_mixed_precision_reaches_the_blocks(epoch):
    objective = objective_of()
    objective.options = replace(objective.options, precision="bfloat16")
    assert objective.options.mixed_precision
    losses_of(objective, epoch)  # the first call proves in full precision what can be batched
    found = []
    advance = objective.backbone.block
    objective.backbone.block = lambda *args, **kwargs: (
        found.append(torch.is_autocast_enabled("cpu")) or advance(*args, **kwargs)
    )
    exact = float(losses_of(objective_of(), epoch)["loss"].detach())
    rough = float(losses_of(objective, epoch)["loss"].detach())
    assert found
    assert all(found)
    assert rough != exact
    assert rough == pytest.approx(exact, rel=0.2)


class _Precisions(TorchDispatchMode):
    """Collect the precisions that operations compute in."""

    def __init__(self):
        super().__init__()
        self.found = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.is_floating_point():
            self.found.setdefault(str(function), set()).add((result.dtype, result.shape[-1:]))
        return result


@pytest.mark.parametrize("epoch", [0, 3, 9])
def test_losses_and_readout_stay_in_full_precision(epoch):
    objective = objective_of(scales=NoiseScales(1.0, 1.0, 0.5))
    objective.options = replace(objective.options, precision="bfloat16")
    losses_of(objective, epoch)
    read, readout = [], objective.backbone.readout

    def recorded(h, context):
        read.append((h.dtype, torch.is_autocast_enabled("cpu")))
        return readout(h, context)

    objective.backbone.readout = recorded
    with _Precisions() as precisions:
        loss = losses_of(objective, epoch)["loss"]
    found = precisions.found
    full = torch.float32
    assert loss.dtype == full
    products = [f"aten.{name}.default" for name in ("addmm", "baddbmm", "mm", "bmm")]
    products = set().union(*(found.get(name, set()) for name in products))
    assert torch.bfloat16 in {dtype for dtype, _ in products}
    assert read == [(full, False)] * (2 if epoch == 9 else 0)
    for name in ("log", "log_softmax", "_log_softmax", "logsumexp", "square", "exp", "mean.dim"):
        for key, values in found.items():
            if key.startswith(f"aten.{name}."):
                assert torch.bfloat16 not in {dtype for dtype, _ in values}, key
    assert all(p.dtype == full for p in objective.transition.parameters())


def test_automatic_precision_is_mixed_on_a_gpu_only():
    options = objective_of().options
    for device, mixed in (("cpu", False), ("cuda:0", True)):
        loop = replace(options.loop, device=device)
        assert replace(options, precision="auto", loop=loop).mixed_precision is mixed
        assert not replace(options, precision="float32", loop=loop).mixed_precision
