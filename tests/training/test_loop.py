import copy
import math
import pickle

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback, EarlyStopping
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sklearn_diffuq._training.loop import train_module
from sklearn_diffuq._training.loop_options import LoopOptions

X = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
Y = X @ torch.tensor([1.0, -2.0, 0.5]) + 0.3


def train(module, batch_loss, epoch_batches, validate=None, **options):
    return train_module(module, batch_loss, epoch_batches, LoopOptions(**options), validate)


def shuffled(epoch, rng):
    return np.array_split(rng.permutation(64), 4)


def in_order(epoch, rng):
    return np.array_split(np.arange(64), 4)


def squared_loss(module):
    def batch_loss(rows, epoch, generator):
        return {"loss": (module(X[rows]).squeeze(-1) - Y[rows]).square().mean()}

    return batch_loss


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(3, 1)


def parameters(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_one_step_is_adamw_on_the_clipped_gradient():
    module = linear()
    expected = copy.deepcopy(module)
    optimizer = torch.optim.AdamW(
        [{"params": [expected.weight], "weight_decay": 0.5}, {"params": [expected.bias]}],
        lr=0.1,
        weight_decay=0.0,
    )
    for rows in in_order(0, None):
        optimizer.zero_grad()
        squared_loss(expected)(rows, 0, None)["loss"].backward()
        grads = torch.cat([p.grad.flatten() for p in expected.parameters()])
        for p in expected.parameters():
            p.grad *= min(1.0, 0.7 / grads.norm().item())
        optimizer.step()
    train(
        module,
        squared_loss(module),
        in_order,
        max_epochs=1,
        lr=0.1,
        weight_decay=0.5,
        schedule=None,
        grad_clip=0.7,
    )
    torch.testing.assert_close(parameters(module), parameters(expected))


def test_it_learns_and_records():
    module = linear()
    seen = []

    def batch_loss(rows, epoch, generator):
        seen.append((epoch, len(rows)))
        return squared_loss(module)(rows, epoch, generator) | {"extra": torch.tensor(epoch + 0.5)}

    history = train(module, batch_loss, shuffled, max_epochs=60, lr=0.1)
    torch.testing.assert_close(
        parameters(module), torch.tensor([1.0, -2.0, 0.5, 0.3]), atol=1e-2, rtol=0
    )
    assert [row["epoch"] for row in history] == list(range(1, 61))
    assert [row["extra"] for row in history] == [e + 0.5 for e in range(60)]
    assert history[-1]["train_loss"] < 1e-3 < history[0]["train_loss"]
    assert seen == [(e, 16) for e in range(60) for _ in range(4)]
    assert "batches" not in history[0]
    assert not module.training


def test_cosine_schedule_rises_then_falls_to_zero():
    module, seen = linear(), []

    class Watch(Callback):
        def on_batch_end(self, net, **kwargs):
            seen.append(net.optimizer_.param_groups[0]["lr"])

    train(module, squared_loss(module), in_order, max_epochs=50, lr=0.2, callbacks=[Watch()])
    seen = np.array(seen)
    assert len(seen) == 200
    assert seen[0] == pytest.approx(0.2 / 10)
    assert seen.argmax() in (9, 10)
    assert seen.max() == pytest.approx(0.2)
    assert (np.diff(seen[10:]) < 0).all()
    assert seen[105] == pytest.approx(0.1, rel=0.02)  # half way down
    assert 0 < seen[-1] < 1e-4


def test_a_single_step_has_a_learning_rate():
    module = linear()
    before = parameters(module)
    train(module, squared_loss(module), lambda e, r: [np.arange(64)], max_epochs=1, lr=0.1)
    assert (parameters(module) - before).abs().max() == pytest.approx(0.1, rel=1e-3)


def test_best_state_is_restored():
    module = linear()
    states, scores = {}, {-1: 3.0, 0: 2.0, 1: float("nan"), 2: 1.0, 3: 1.5, 4: 1.2}

    def validate(epoch):
        assert not module.training
        assert not torch.is_grad_enabled()
        states[epoch] = parameters(module)
        return scores[epoch]

    history = train(module, squared_loss(module), shuffled, max_epochs=5, lr=0.1, validate=validate)
    assert sorted(states) == [-1, 0, 1, 2, 3, 4]
    assert torch.equal(parameters(module), states[2])
    assert [row["valid_loss_best"] for row in history] == [True, False, True, False, False]
    assert not torch.equal(states[2], states[4])


def test_training_that_only_harms_is_undone_and_patience_stops_it():
    module = nn.Sequential(linear(), nn.BatchNorm1d(1))
    before = copy.deepcopy(module.state_dict())
    history = train(
        module,
        squared_loss(module),
        shuffled,
        max_epochs=50,
        lr=0.1,
        validate=lambda epoch: float(epoch),
        patience=3,
    )
    assert len(history) == 3
    for name, value in module.state_dict().items():  # the norm's running statistics too
        assert torch.equal(value, before[name]), name


def test_average_is_the_moving_average_of_the_steps():
    module, live = linear(), [None]

    class Watch(Callback):
        def on_batch_end(self, net, **kwargs):
            live.append(parameters(module))

    live[0] = parameters(module)
    train(
        module,
        squared_loss(module),
        shuffled,
        max_epochs=10,
        lr=0.1,
        average=0.8,
        schedule=None,
        callbacks=[Watch()],
    )
    expected = live[0].double()
    for step, value in enumerate(live[1:], start=1):
        decay = min(0.8, step / (step + 9))
        expected = decay * expected + (1 - decay) * value.double()
    torch.testing.assert_close(parameters(module).double(), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(parameters(module), live[-1])


def test_validation_sees_averaged_weights_and_training_goes_on_from_the_live_ones():
    def run(**kwargs):
        module, live = linear(), []

        class Watch(Callback):
            def on_batch_end(self, net, **kw):
                live.append(parameters(module))

        train(
            module,
            squared_loss(module),
            shuffled,
            max_epochs=4,
            lr=0.1,
            callbacks=[Watch()],
            **kwargs,
        )
        return torch.stack(live)

    seen = []
    validated = run(average=0.9, validate=lambda epoch: seen.append(epoch) or 1.0)
    assert torch.equal(validated, run())
    assert seen == [-1, 0, 1, 2, 3]


class Dropped(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = linear()
        self.dropout = nn.Dropout(0.3)

    def forward(self, x):
        return self.linear(self.dropout(x))


def devices():
    gpu = pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
        ],
    )
    return pytest.mark.parametrize("device", ["cpu", gpu])


def global_random_states(device):
    states = [torch.get_rng_state(), np.random.get_state()[1].copy()]  # noqa: NPY002
    return states + ([torch.cuda.get_rng_state()] if device == "cuda" else [])


@devices()
def test_runs_with_one_seed_are_bit_identical_and_leave_global_random_states_alone(device):
    def run(seed):
        module = Dropped()

        def batch_loss(rows, epoch, generator):
            noise = torch.randn(len(rows), generator=generator, device=device)
            x, y = X[rows].to(device), Y[rows].to(device)
            return {"loss": (module(x).squeeze(-1) - y + 0.1 * noise).square().mean()}

        train(module, batch_loss, shuffled, max_epochs=5, lr=0.1, device=device, seed=seed)
        assert next(module.parameters()).device.type == device
        return parameters(module)

    run(0)
    module = Dropped()
    states = global_random_states(device)
    train(
        module,
        lambda rows, e, g: {"loss": module(X[rows].to(device)).mean()},
        shuffled,
        max_epochs=2,
        lr=0.1,
        device=device,
    )
    for after, before in zip(global_random_states(device), states):
        assert np.array_equal(after, before)
    first = run(0)
    torch.rand(7)  # another global state must not matter to training
    assert torch.equal(run(0), first)
    assert not torch.equal(run(1), first)


def test_frozen_parameters_stay_and_gradients_are_not_left_on_them():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    module[0].requires_grad_(False)
    before = parameters(module[0])
    after = parameters(module[1])
    train(
        module, squared_loss(module), shuffled, max_epochs=2, lr=0.1, weight_decay=0.1, average=0.9
    )
    assert torch.equal(parameters(module[0]), before)
    assert not torch.equal(parameters(module[1]), after)


@pytest.mark.parametrize("where", ["loss", "validate", "batches"])
def test_a_real_interrupt_is_raised(where):
    module = linear()

    def interrupted(*args):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(
            module,
            interrupted if where == "loss" else squared_loss(module),
            interrupted if where == "batches" else shuffled,
            max_epochs=2,
            lr=0.1,
            validate=interrupted if where == "validate" else None,
        )


def test_skorch_callbacks_can_stop_training():
    module = linear()
    history = train(
        module,
        squared_loss(module),
        shuffled,
        max_epochs=50,
        lr=0.1,
        validate=lambda epoch: 1.0,
        callbacks=[EarlyStopping(monitor="valid_loss", patience=2, sink=lambda text: None)],
    )
    assert len(history) == 3


def test_a_diverging_loss_says_so_and_leaves_the_weights_as_they_were():
    module = linear()
    before = module.weight.detach().clone()
    with pytest.raises(FloatingPointError, match="became nan in epoch 1. Lower `lr`"):
        train(
            module,
            lambda rows, e, g: {"loss": module(X[rows]).sum() * math.nan},
            shuffled,
            max_epochs=2,
            lr=0.1,
        )
    assert torch.equal(module.weight.detach(), before)


def test_what_follows_from_a_diverged_loss_is_not_what_is_said():
    module = linear()

    def batch_loss(rows, epoch, generator):
        loss = squared_loss(module)(rows, epoch, generator)["loss"]
        if not torch.isfinite(loss):  # as a decomposition of the weights would
            raise ValueError("not positive definite")
        return {"loss": loss * (math.inf if rows[0] == 16 else 1)}

    with pytest.raises(FloatingPointError, match="became inf in epoch 1"):
        train(module, batch_loss, in_order, max_epochs=1, lr=0.1)


class Fetches(TorchDispatchMode):
    """Count how often a scalar is fetched, for which a GPU has to finish all that was asked."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.n += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_no_step_waits_for_the_device():
    def fetched(n_batches):
        module = linear()

        def batch_loss(rows, epoch, generator):
            loss = squared_loss(module)(rows, epoch, generator)["loss"]
            return {"loss": loss, "extra": loss.detach() * 2}

        with Fetches() as fetches:
            history = train(
                module,
                batch_loss,
                lambda epoch, rng: np.array_split(np.arange(64), n_batches),
                max_epochs=2,
                lr=0.1,
                average=0.9,
            )
        assert history[0]["extra"] == pytest.approx(2 * history[0]["train_loss"])
        return fetches.n

    assert fetched(32) == fetched(2)


def test_losses_of_batches_are_in_the_history_that_callbacks_see():
    module, seen = linear(), []

    class Watch(Callback):
        def on_epoch_end(self, net, **kwargs):
            seen.append(net.history[-1, "batches", :, ["train_loss", "train_batch_size"]])

    history = train(
        module,
        squared_loss(module),
        lambda epoch, rng: [np.arange(16), np.arange(16, 64)],
        max_epochs=1,
        lr=0.1,
        callbacks=[Watch()],
    )
    (losses,) = seen
    assert [n for _, n in losses] == [16, 48]
    mean = (losses[0][0] * 16 + losses[1][0] * 48) / 64
    assert history[0]["train_loss"] == pytest.approx(mean)


def test_verbose_prints_one_line_per_epoch(capsys):
    module = linear()
    train(module, squared_loss(module), shuffled, max_epochs=3, lr=0.1)
    assert capsys.readouterr().out == ""
    train(
        module,
        squared_loss(module),
        shuffled,
        max_epochs=3,
        lr=0.1,
        verbose=1,
        validate=lambda epoch: 0.5,
    )
    lines = capsys.readouterr().out.strip().splitlines()
    assert "valid_loss" in lines[0]
    assert len(lines) == 2 + 3


@pytest.mark.slow
def test_compiled_training_leaves_a_module_that_pickles():
    module, plain = linear(), linear()
    train(module, squared_loss(module), shuffled, max_epochs=2, lr=0.1, compile=True)
    train(plain, squared_loss(plain), shuffled, max_epochs=2, lr=0.1)
    torch.testing.assert_close(parameters(pickle.loads(pickle.dumps(module))), parameters(plain))
    assert module._compiled_call_impl is None


def test_callbacks_see_the_loss_of_a_batch():
    module, seen = linear(), []

    class Spy(Callback):
        def on_batch_end(self, net, **kwargs):
            seen.append(float(net.history[-1, "batches", -1, "train_loss"]))

    history = train(module, squared_loss(module), shuffled, max_epochs=1, lr=0.1, callbacks=[Spy()])
    assert len(seen) > 1
    assert history[0]["train_loss"] == pytest.approx(np.mean(seen), rel=0.2)
