"""The stages of `fit_path` in order: what is computed, and how often; what is left alone."""

import copy
import warnings
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_backbones import ALL

from sklearn_diffuq import _fit_path
from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._calibration import calibrator as calibrator_module
from sklearn_diffuq._calibration.calibration import Calibration
from sklearn_diffuq._calibration.calibrator import Calibrator, Reference
from sklearn_diffuq._fit_path import PathOptions, fit_path
from sklearn_diffuq._inputs.columns import Dense, Ragged
from sklearn_diffuq._inputs.encoded_inputs import EncodedInputs, LabelledInputs
from sklearn_diffuq._path.covariance import NoiseScales
from sklearn_diffuq._path.distance import describe
from sklearn_diffuq._path.mean import BlockwiseMean
from sklearn_diffuq._path.statistics import collect_statistics
from sklearn_diffuq._path.time_grid import steps_of, time_grid
from sklearn_diffuq._propagation.propagate import mean_logits
from sklearn_diffuq._training.loop_options import LoopOptions
from sklearn_diffuq._transition import rank as rank_module
from sklearn_diffuq._transition.rank import choose_rank
from sklearn_diffuq._transition.training_options import TrainingOptions
from sklearn_diffuq.exceptions import CalibrationWarning

LOOP = LoopOptions(max_epochs=1, lr=1e-3)
TRAINING = TrainingOptions(
    path_weight=0.3,
    distillation_weight=1.0,
    label_weight=0.5,
    batch_size=32,
    precision="float32",
    loop=LOOP,
)
OPTIONS = PathOptions(
    transition="unified",
    step_counts=(4,),
    rank=2,
    n_shared_blocks=1,
    covariance="gp",
    noise_rank=2,
    training=TRAINING,
    seed=0,
)


def _labelled(backbone, n, seed=0):
    """Return random images with the labels that the backbone gives them."""
    x = torch.randn(n, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
    with backbone.frozen(), torch.no_grad():
        y = backbone.logits({"x": x}).argmax(1)
    return LabelledInputs(EncodedInputs({"x": Dense(x.numpy())}), y, torch.ones(n))


def _fit(backbone, training, held_out, lr=LOOP.lr, max_epochs=1, **options):
    loop = replace(LOOP, lr=lr, max_epochs=max_epochs)
    options = replace(OPTIONS, training=replace(TRAINING, loop=loop), **options)
    return fit_path(backbone, training, held_out, options)


def _fit_quietly(*args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _fit(*args, **options)


def _frozen_logits(backbone, inputs):
    return mean_logits(BlockwiseMean(backbone), (0, backbone.n_blocks), backbone, inputs)


def _logits(fitted, backbone, inputs):
    return mean_logits(fitted.path.mean, fitted.path.grid, backbone, inputs)


@pytest.fixture
def vit():
    return ALL["vit"]()[0]


def _share_blocks_up_to_low_rank(backbone, rank):
    """Make every matrix that of block 0 plus a random delta of the given rank."""
    generator = torch.Generator().manual_seed(1)
    first = dict(backbone.blocks[0].named_parameters())
    with torch.no_grad():
        for block in backbone.blocks[1:]:
            for name, parameter in block.named_parameters():
                if parameter.ndim == 2:
                    d_out, d_in = parameter.shape
                    up = torch.randn(d_out, rank, generator=generator)
                    down = torch.randn(rank, d_in, generator=generator)
                    parameter.copy_(first[name] + 0.2 * up @ down / d_in**0.5)


def _choose(backbone, n_shared_blocks=1):
    held_out = _labelled(backbone, 200)
    steps = steps_of(time_grid(4, 4))
    with backbone.frozen():
        statistics = collect_statistics(
            backbone, [held_out.inputs.batch(np.arange(200))], steps, with_moments=True
        )
        frozen = Reference(_frozen_logits(backbone, held_out.inputs), 1.0, 0.0)
        return choose_rank(backbone, statistics.moments, held_out, n_shared_blocks, frozen, seed=0)


def test_blocks_that_differ_by_little_get_a_small_rank(vit):
    _share_blocks_up_to_low_rank(vit, 2)
    assert _choose(vit) == 4


def test_blocks_with_nothing_in_common_keep_their_full_rank(vit):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for block in vit.blocks:
            for parameter in block.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(0, 0.4, generator=generator)
    assert _choose(vit) is None


def test_a_transition_larger_than_the_blocks_is_never_chosen(vit, monkeypatch):
    # Any rank is faithful enough here, so only the size can rule one out.
    monkeypatch.setattr(rank_module, "ACCURACY_MARGIN", 1.0)
    monkeypatch.setattr(rank_module, "KL_MARGIN", np.inf)
    assert _choose(vit) == 4
    assert _choose(vit, n_shared_blocks=4) is None  # four shared matrices are the blocks


def test_the_learned_variances_take_the_place_of_those_of_the_increments(vit):
    with vit.frozen():
        path = _fit_quietly(vit, _labelled(vit, 60), _labelled(vit, 40, seed=1)).path
    assert torch.equal(path.covariance.token_variances, path.mean.variances())


def test_a_start_that_training_only_harms_is_kept_at_its_rank(vit):
    _share_blocks_up_to_low_rank(vit, 2)
    held_out = _labelled(vit, 200)
    with vit.frozen():
        fitted = _fit(vit, _labelled(vit, 60), held_out, rank="auto", lr=0.5)
        expected = _frozen_logits(vit, held_out.inputs)
        found = _logits(fitted, vit, held_out.inputs)
    assert fitted.history[0]["valid_loss"] > 0.5  # no epoch is within the margin
    assert fitted.path.mean.rank == 4
    assert (found - expected).abs().mean() < 0.1 * expected.std()


@pytest.mark.parametrize("n_shared_blocks", [3, 9])
def test_more_shared_blocks_than_steps_are_as_many_as_steps(vit, n_shared_blocks):
    options = {"n_shared_blocks": n_shared_blocks, "step_counts": (2,), "rank": "auto"}
    training = _labelled(vit, 60)
    with vit.frozen():
        fitted = _fit_quietly(vit, training, _labelled(vit, 40, seed=1), **options)
    assert fitted.path.n_steps == 2


def test_full_rank_with_one_step_per_block_is_not_trained(vit, monkeypatch):
    monkeypatch.setattr(Calibrator, "noise_scales", None)  # no noise to train under is needed
    monkeypatch.setattr(_fit_path, "train_transition", None)
    held_out = _labelled(vit, 40, seed=1)
    with vit.frozen():
        fitted = _fit(vit, _labelled(vit, 60), held_out, rank=None)
        expected = _frozen_logits(vit, held_out.inputs)
        found = _logits(fitted, vit, held_out.inputs)
    assert fitted.history == []
    assert fitted.path.mean.rank is None
    assert torch.equal(found, expected)
    assert not any(p.requires_grad for p in fitted.path.mean.parameters())


@pytest.mark.parametrize("transition", ["unified", "blockwise"])
def test_the_backbone_is_left_alone(vit, transition):
    before = copy.deepcopy(vit.module.state_dict())
    with vit.frozen():
        fitted = _fit_quietly(
            vit,
            _labelled(vit, 60),
            _labelled(vit, 40, seed=1),
            transition=transition,
        )
    assert len(fitted.history) == (transition == "unified")
    after = vit.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None and p.requires_grad for p in vit.module.parameters())


def test_lost_accuracy_is_said_with_the_way_out(vit):
    with vit.frozen(), pytest.warns(CalibrationWarning, match="rank 1 .*less than") as caught:
        _fit(
            vit,
            _labelled(vit, 60),
            _labelled(vit, 300, seed=1),
            rank=1,
            lr=1e-6,
        )
    text = str(next(w.message for w in caught if "less than" in str(w.message)))
    for way_out in ("rank", "n_steps", "max_epochs", "transition='blockwise'"):
        assert way_out in text


def test_kept_accuracy_is_not_warned_of(vit):
    _share_blocks_up_to_low_rank(vit, 2)
    with vit.frozen(), warnings.catch_warnings():
        warnings.simplefilter("error", CalibrationWarning)
        warnings.filterwarnings("ignore", "The temperature is at its lower bound")  # all are right
        _fit(
            vit,
            _labelled(vit, 60),
            _labelled(vit, 300, seed=1),
            rank=4,
            lr=1e-5,
        )


def test_the_wrapped_model_comes_back_where_training_does_not_help(vit, monkeypatch):
    monkeypatch.setattr(_fit_path, "choose_rank", lambda *args: 1)
    held_out = _labelled(vit, 300, seed=1)
    with vit.frozen(), warnings.catch_warnings():
        warnings.simplefilter("error", CalibrationWarning)
        warnings.filterwarnings("ignore", "The temperature is at its lower bound")  # all are right
        fitted = _fit(vit, _labelled(vit, 60), held_out, rank="auto", lr=1e-6)
        expected = _frozen_logits(vit, held_out.inputs)
        assert torch.equal(_logits(fitted, vit, held_out.inputs), expected)
    assert fitted.path.mean.rank is None
    assert not any(p.requires_grad for p in fitted.path.mean.parameters())


def _spy_on_statistics(monkeypatch):
    seen = []

    def spy(backbone, batches, grid, with_moments):
        batches = list(batches)
        seen.extend(batches)
        return collect_statistics(backbone, batches, grid, with_moments)

    monkeypatch.setattr(_fit_path, "collect_statistics", spy)
    return seen


def test_statistics_count_every_text_once(monkeypatch):
    backbone, _ = ALL["bert"]()
    rng = np.random.default_rng(0)
    texts = [rng.integers(1, 50, size) for size in rng.integers(2, 15, 43)]
    inputs = EncodedInputs({"input_ids": Ragged(texts, 0)}, max_length=16)
    labelled = LabelledInputs(inputs, torch.arange(43) % 2, torch.ones(43))
    seen = _spy_on_statistics(monkeypatch)
    with backbone.frozen():
        _fit(backbone, labelled, labelled, transition="blockwise", step_counts=(3,))
    rows = [
        tuple(ids[mask.bool()].tolist())
        for batch in seen
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert sorted(rows) == sorted(tuple(text.tolist()) for text in texts)


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_blockwise_fit_takes_three_forwards_of_all_rows(noise, monkeypatch):
    """Backward passes count as much, and so do rows that only fill a batch.

    Where noise pays, it is tried on real paths of some rows besides.
    """
    backbone, _ = ALL["bert"]()
    rng = np.random.default_rng(0)
    texts = [rng.integers(1, 50, size) for size in rng.integers(2, 15, 600)]
    inputs = EncodedInputs({"input_ids": Ragged(texts, 0)}, max_length=16)
    labelled = LabelledInputs(inputs, torch.arange(600) % 2, torch.ones(600))
    block, grad, n_rows = backbone.block, torch.autograd.grad, Counter()

    def count_block(k, h, context, call=None):
        n_rows["forward"] += len(h)
        return block(k, h, context, call)

    def count_grad(outputs, inputs, *args, **kwargs):
        if isinstance(inputs, list):  # the nudges of all steps, not the scales of the noise
            n_rows["backward"] += len(inputs[0]) * backbone.n_blocks
        return grad(outputs, inputs, *args, **kwargs)

    monkeypatch.setattr(backbone, "block", count_block)
    monkeypatch.setattr(torch.autograd, "grad", count_grad)
    monkeypatch.setattr(calibrator_module, "MAX_SAMPLED_ROWS", 60)
    noisy = Calibration(NoiseScales(noise, noise, 0.1), 1.0, 0.0)
    monkeypatch.setattr(calibrator_module, "fit_noise", lambda *args, **kwargs: noisy)
    halves = labelled.take(np.arange(300)), labelled.take(np.arange(300, 600))
    with backbone.frozen():
        fitted = _fit_quietly(backbone, *halves, transition="blockwise", step_counts=(3,))
    forward, backward = (n_rows[name] / backbone.n_blocks for name in ("forward", "backward"))
    assert backward == 2 * 300
    tried = 8 * len(calibrator_module.SHRINKAGE) * 60 if noise else 0
    assert (fitted.calibrations[3]["sampling"] is not noisy) == (noise > 0)
    assert forward + backward - tried <= 3 * 600


def test_rank_is_judged_on_random_rows_of_sorted_data(vit, monkeypatch):
    held_out = _labelled(vit, 300)
    held_out = held_out.take(np.argsort(held_out.y.numpy(), kind="stable"))
    classes = torch.unique(held_out.y)
    assert len(classes) > 1
    monkeypatch.setattr(rank_module, "MAX_RANK_ROWS", 40)
    judged = []
    monkeypatch.setattr(rank_module, "within_margins", lambda *args: judged.append(args) or True)
    with vit.frozen():
        _fit_quietly(vit, _labelled(vit, 60), held_out, rank="auto")
    for logits, frozen_logits, y, _ in judged:
        assert len(logits) == len(frozen_logits) == len(y) == 40
        assert torch.equal(torch.unique(y), classes)
        assert torch.equal(frozen_logits.argmax(1), y)  # the same rows: the model's own labels


def test_the_automatic_rank_does_not_depend_on_the_seed(vit, monkeypatch):
    _share_blocks_up_to_low_rank(vit, 2)
    training, held_out = _labelled(vit, 200), _labelled(vit, 200)
    chosen = []
    monkeypatch.setattr(
        _fit_path, "choose_rank", lambda *args: chosen.append(choose_rank(*args)) or 4
    )
    with vit.frozen():
        for seed in range(4):
            shuffled = held_out.take(np.random.default_rng(seed).permutation(len(held_out)))
            _fit_quietly(vit, training, shuffled, rank="auto", seed=seed)
    assert chosen == [4] * 4


def test_states_kept_do_not_grow_with_the_rows(vit, monkeypatch):
    monkeypatch.setattr(_fit_path, "MAX_STATISTICS_ROWS", 50)
    seen = _spy_on_statistics(monkeypatch)
    with vit.frozen():
        _fit(
            vit,
            _labelled(vit, 500),
            _labelled(vit, 40, seed=1),
            transition="blockwise",
        )
    assert sum(len(batch["x"]) for batch in seen) == 50


def test_one_fit_serves_several_numbers_of_steps(vit):
    held_out = _labelled(vit, 40, seed=1)
    with vit.frozen():
        fitted = _fit_quietly(vit, _labelled(vit, 60), held_out, step_counts=(4, 2), max_epochs=2)
        assert list(fitted.grids.values()) == [(0, 1, 2, 3, 4), (0, 2, 4)]
        assert set(fitted.calibrations) == {4, 2}
        for n, grid in fitted.grids.items():
            path = fitted.on(n)
            assert path.n_steps == n
            found = mean_logits(path.mean, grid, vit, held_out.inputs)
            assert found.shape == (40, 3)
            assert fitted.n_parameters(n, "mean") == path.mean.n_parameters(grid)
            for inference, calibration in fitted.calibrations[n].items():
                calibrated = fitted.calibrated(n, inference, 4)
                assert calibrated.calibration is calibration
                assert (calibrated.path.grid, calibrated.seed) == (grid, 0)
    assert len(fitted.history[0]["rolled_out_r2"]) == 4


def test_distances_are_to_the_states_that_the_transition_arrives_at(vit):
    training = _labelled(vit, 30)
    with vit.frozen():
        fitted = _fit_quietly(vit, training, _labelled(vit, 40, seed=1), step_counts=(2,))
        covariance, mean = fitted.path.covariance, fitted.path.mean
        with torch.no_grad():
            h, context = vit.embed(training.inputs.batch(np.arange(30)))
            for interval in steps_of(fitted.path.grid):
                h = mean(h, interval, context)
                distance = covariance.distances[covariance.blocks.index(interval[1])]
                apart = torch.cdist(distance.process.states, describe(h).double())
                assert float(apart.min(1).values.max()) < 1e-5
    assert covariance.blocks == (0, 2, 4)


# How often the frozen model runs ----------------------------------------------------------------


def _frozen_runs(monkeypatch, backbone, labelled):
    """Return a function that tells how often each of some rows has entered the frozen blocks.

    Perturbed copies do not count: they are other inputs, even where nothing of them was changed.
    """
    with backbone.frozen(), torch.no_grad():
        starts, _ = backbone.embed(labelled.inputs.batch(np.arange(len(labelled))))
    counts, perturbing = np.zeros(len(labelled), dtype=int), []
    block, perturbed = Backbone.block, Calibrator._perturbed

    def counted(self, k, h, context, call=None):
        if k == 0 and call is None and not perturbing:
            # chunks are filled up with copies of a row, which count as one
            apart = (h.detach()[:, None] - starts).abs().amax((2, 3))
            counts[(apart < 1e-3).any(0).numpy()] += 1
        return block(self, k, h, context, call)

    def not_counted(*args):
        perturbing.append(True)
        try:
            return perturbed(*args)
        finally:
            perturbing.pop()

    monkeypatch.setattr(Backbone, "block", counted)
    monkeypatch.setattr(Calibrator, "_perturbed", not_counted)
    return lambda: counts


@pytest.mark.parametrize("n_held_out", [20, 40])  # without and with enough rows to fit noise on
@pytest.mark.parametrize(
    "options",
    [
        {"transition": "blockwise"},
        {"transition": "blockwise", "covariance": "constant"},
        {"transition": "blockwise", "covariance": "attention"},
        {"transition": "blockwise", "step_counts": (2,)},
        {"rank": 2},
        {"rank": 2, "max_epochs": 3},
        {"rank": 2, "step_counts": (4, 2)},
        {"rank": "auto"},
        {"rank": None},
    ],
    ids=str,
)
def test_the_frozen_model_runs_over_the_held_out_rows_once(vit, monkeypatch, options, n_held_out):
    training, held_out = _labelled(vit, 60), _labelled(vit, n_held_out, seed=1)
    runs = _frozen_runs(monkeypatch, vit, held_out)
    with vit.frozen():
        _fit_quietly(vit, training, held_out, **options)
    assert runs().tolist() == [1] * n_held_out
