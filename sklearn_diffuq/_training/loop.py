"""The training loop: the only file that imports skorch."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import skorch
import torch
from skorch.callbacks import EpochTimer, GradientNormClipping, PassthroughScoring, PrintLog

from sklearn_diffuq._training.seeds import own_torch_seed
from sklearn_diffuq._training.weights import BestWeights, MovingAverage

_WARMUP = 0.05  # share of all steps over which the learning rate rises


@dataclass(frozen=True)
class LoopOptions:
    """How `train_module` trains.

    Attributes
    ----------
    max_epochs : int
        Number of epochs.
    lr : float
        Highest learning rate.
    weight_decay : float, default=0.0
        Decoupled weight decay of matrices; vectors and biases have none.
    patience : int, default=None
        Stop after this many epochs without a better score; None never stops early.
    average : float, default=0.0
        Decay, per step, of the moving average of the weights; 0 means no averaging.
    schedule : {"cosine", None}, default="cosine"
        "cosine" raises the learning rate over the first twentieth of the steps, then lowers it
        to 0; None keeps it constant.
    grad_clip : float, default=1.0
        Largest norm of the gradient; None means no limit.
    callbacks : list of skorch callbacks, default=None
        Added to the loop. One that raises KeyboardInterrupt at the end of an epoch, as skorch's
        EarlyStopping does, stops training; an interrupt from anywhere else is raised.
    device : str or torch.device, default="cpu"
        Where training takes place.
    seed : int, default=0
        Seed of batch order, dropout and the generator.
    verbose : int, default=0
        Above 0, print one line per epoch.
    compile : bool, default=False
        Compile the module's forward while it trains.
    """

    max_epochs: int
    lr: float
    weight_decay: float = 0.0
    patience: int | None = None
    average: float = 0.0
    schedule: str | None = "cosine"
    grad_clip: float | None = 1.0
    callbacks: list | None = None
    device: str | torch.device = "cpu"
    seed: int = 0
    verbose: int = 0
    compile: bool = False


class _Net(skorch.NeuralNet):
    """skorch net whose batches are arrays of row numbers and whose loss is a plain function."""

    def __init__(self, module, *, batch_loss, epoch_batches, validate, options):
        super().__init__(
            module,
            criterion=torch.nn.Identity,
            train_split=None,
            max_epochs=options.max_epochs,
            lr=options.lr,
            callbacks=options.callbacks,
            device=options.device,
            verbose=options.verbose,
        )
        self.batch_loss = batch_loss
        self.epoch_batches = epoch_batches
        self.validate = validate
        self.options = options

    @property
    def _default_callbacks(self):
        callbacks = [
            ("epoch_timer", EpochTimer()),
            ("train_loss", PassthroughScoring("train_loss", on_train=True)),
        ]
        if self.options.grad_clip is not None:
            callbacks.append(("grad_clip", GradientNormClipping(self.options.grad_clip)))
        if self.verbose:
            callbacks.append(("print_log", PrintLog()))
        return callbacks

    def initialize_optimizer(self, triggered_directly=None):
        named = [(n, p) for n, p in self.module_.named_parameters() if p.requires_grad]
        self.trained_ = [p for _, p in named]
        # biases, norms and other vectors are not shrunk
        plain = [p for n, p in named if p.ndim < 2 or n.endswith("bias")]
        decayed = [p for n, p in named if not (p.ndim < 2 or n.endswith("bias"))]
        groups = [
            {"params": decayed, "weight_decay": self.options.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        self.optimizer_ = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=self.lr, fused=True
        )
        return self

    def get_all_learnable_params(self):
        return ((n, p) for n, p in self.module_.named_parameters() if p.requires_grad)

    def train_step_single(self, batch, **fit_params):
        step = self.batch_loss(batch, self.epoch_, self.generator_)
        loss = step["loss"]
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"The training loss became {loss.item()} in epoch {self.epoch_ + 1}. Lower `lr`, "
                f"which is {self.lr}, or check the scale of the inputs."
            )
        loss.backward()
        extras = {name: float(value) for name, value in step.items() if name != "loss"}
        return {"loss": loss.detach(), "y_pred": None, "extras": extras}

    def train_step(self, batch, **fit_params):
        if self.options.schedule == "cosine":
            progress = (self.epoch_ + self.position_ / self.n_batches_) / self.max_epochs
            for group in self.optimizer_.param_groups:
                group["lr"] = self.lr * _cosine(progress, 1 / (self.n_batches_ * self.max_epochs))
        step = super().train_step(batch, **fit_params)
        self.position_ += 1
        self.average_.update()
        for name, value in step["extras"].items():
            total, weight = self.extras_.get(name, (0.0, 0))
            self.extras_[name] = (total + value * len(batch), weight + len(batch))
        return step

    def fit_loop(self, X=None, y=None, epochs=None, **fit_params):
        rng = np.random.default_rng(self.options.seed)
        self.generator_ = torch.Generator(self.device).manual_seed(self.options.seed + 1)
        self.average_ = MovingAverage(self.trained_, self.options.average)
        best = BestWeights(self.module_, self.trained_)
        if self.validate is not None:
            best.offer(self._score(-1), -1)
        for epoch in range(self.max_epochs):
            self.epoch_, self.position_, self.extras_ = epoch, 0, {}
            batches = self.epoch_batches(epoch, rng)
            self.n_batches_ = len(batches)
            self.module_.train()
            self.notify("on_epoch_begin", dataset_train=None, dataset_valid=None)
            self.run_single_epoch(batches, training=True, prefix="train", step_fn=self.train_step)
            self._end_epoch(epoch, best)
            if self._callback_stops() or self._patience_is_over(epoch, best):
                break
        self._finish(best)
        return self

    def _end_epoch(self, epoch, best):
        for name, (total, weight) in self.extras_.items():
            self.history.record(name, total / weight)
        self.history.record("lr", self.optimizer_.param_groups[0]["lr"])
        if self.validate is None:
            return
        with self.average_.swapped_in():
            score = self._score(epoch)
            self.history.record("valid_loss", score)
            self.history.record("valid_loss_best", best.offer(score, epoch))

    def _score(self, epoch):
        self.module_.eval()
        with torch.no_grad():
            return float(self.validate(epoch))

    def _callback_stops(self):
        """Run the callbacks; they ask for a stop by raising KeyboardInterrupt.

        It is caught only here, so that an interrupt in training or validation reaches the user.
        """
        try:
            self.notify("on_epoch_end", dataset_train=None, dataset_valid=None)
        except KeyboardInterrupt:
            return True
        return False

    def _patience_is_over(self, epoch, best):
        return (
            self.validate is not None
            and self.options.patience is not None
            and epoch - max(best.epoch, -1) >= self.options.patience
        )

    def _finish(self, best):
        if self.validate is not None:
            best.restore()
        else:
            self.average_.copy_to_module()
        self.module_.eval()

    def partial_fit(self, X=None, y=None, classes=None, **fit_params):
        # skorch's own swallows every KeyboardInterrupt
        self.notify("on_train_begin", X=None, y=None)
        self.fit_loop()
        self.notify("on_train_end", X=None, y=None)
        return self


def _cosine(progress: float, step: float) -> float:
    """Learning-rate factor: linear rise over the first part, half a cosine down to 0 after it."""
    if progress < _WARMUP:
        return min(1.0, (progress + step) / _WARMUP)
    return 0.5 * (1 + math.cos(math.pi * (progress - _WARMUP) / (1 - _WARMUP)))


def train_module(
    module: torch.nn.Module,
    batch_loss: Callable[[np.ndarray, int, torch.Generator], dict[str, torch.Tensor]],
    epoch_batches: Callable[[int, np.random.Generator], list[np.ndarray]],
    options: LoopOptions,
    validate: Callable[[int], float] | None = None,
) -> list[dict[str, Any]]:
    """Train a module in place with AdamW and keep its best state.

    Two calls with the same arguments give the same bits. The global random state of torch and numpy
    is neither used nor changed. Afterwards the module is on the device of the options, in
    evaluation mode.

    Parameters
    ----------
    module : torch.nn.Module
        What is trained; only parameters that require a gradient change. Copy it before if the
        original is needed.
    batch_loss : callable
        ``batch_loss(rows, epoch, generator)`` returns a dict with the scalar tensor ``"loss"``;
        other entries are scalars recorded as means over the epoch. `generator` is a torch
        generator on the device.
    epoch_batches : callable
        ``epoch_batches(epoch, rng)`` returns a list of arrays of row numbers; `rng` is a numpy
        generator.
    options : LoopOptions
    validate : callable, default=None
        ``validate(epoch)`` returns a float, lower is better. It is called in evaluation mode,
        without gradients, with the averaged weights, before training (epoch -1) and after every
        epoch; the best state is restored at the end. None keeps the last state.

    Returns
    -------
    history : list of dict
        One entry per epoch: ``epoch`` (from 1), ``train_loss``, ``valid_loss``, ``lr``, ``dur`` in
        seconds, and the other entries of `batch_loss`.
    """
    net = _Net(
        module,
        batch_loss=batch_loss,
        epoch_batches=epoch_batches,
        validate=validate,
        options=options,
    )
    if options.compile:
        module.compile()
    try:
        with own_torch_seed(options.seed, options.device):
            net.initialize().partial_fit()
    finally:
        if options.compile:
            module._compiled_call_impl = None  # a compiled call cannot be pickled
    return [{k: v for k, v in row.items() if k != "batches"} for row in net.history]
