"""The training loop: the only file that imports skorch."""

import contextlib
import math

import numpy as np
import skorch
import torch
from skorch.callbacks import EpochTimer, GradientNormClipping, PassthroughScoring, PrintLog

_WARMUP = 0.05  # share of all steps over which the learning rate rises


class _Net(skorch.NeuralNet):
    """skorch net whose batches are arrays of row numbers and whose loss is a plain function."""

    def __init__(
        self,
        module,
        *,
        batch_loss,
        epoch_batches,
        validate,
        weight_decay,
        patience,
        average,
        schedule,
        grad_clip,
        seed,
        **kwargs,
    ):
        super().__init__(module, criterion=torch.nn.Identity, train_split=None, **kwargs)
        self.batch_loss = batch_loss
        self.epoch_batches = epoch_batches
        self.validate = validate
        self.weight_decay = weight_decay
        self.patience = patience
        self.average = average
        self.schedule = schedule
        self.grad_clip = grad_clip
        self.seed = seed

    @property
    def _default_callbacks(self):
        callbacks = [
            ("epoch_timer", EpochTimer()),
            ("train_loss", PassthroughScoring("train_loss", on_train=True)),
        ]
        if self.grad_clip is not None:
            callbacks.append(("grad_clip", GradientNormClipping(self.grad_clip)))
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
            {"params": decayed, "weight_decay": self.weight_decay},
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
        if self.schedule == "cosine":
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
        rng = np.random.default_rng(self.seed)
        self.generator_ = torch.Generator(self.device).manual_seed(self.seed + 1)
        self.average_ = _Average(self.trained_, self.average)
        best = _Best(self.module_, self.trained_)
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
            and self.patience is not None
            and epoch - max(best.epoch, -1) >= self.patience
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


class _Average:
    """Exponential moving average of the trained parameters; off when `decay` is 0."""

    def __init__(self, parameters, decay):
        self.parameters, self.decay, self.n_updates = parameters, decay, 0
        self.values = [p.detach().clone() for p in parameters] if decay else []

    @torch.no_grad()
    def update(self):
        if self.decay:
            # a short memory first, so that the start is forgotten
            self.n_updates += 1
            decay = min(self.decay, self.n_updates / (self.n_updates + 9))
            torch._foreach_lerp_(self.values, self.parameters, 1 - decay)

    @torch.no_grad()
    def copy_to_module(self):
        for parameter, value in zip(self.parameters, self.values, strict=False):
            parameter.copy_(value)

    @contextlib.contextmanager
    def swapped_in(self):
        """Give the module the averaged weights for a while."""
        live = [p.detach().clone() for p in self.parameters] if self.decay else []
        self.copy_to_module()
        yield
        with torch.no_grad():
            for parameter, value in zip(self.parameters, live, strict=False):
                parameter.copy_(value)


class _Best:
    """The trained parameters and buffers with the lowest score so far."""

    def __init__(self, module, parameters):
        self.tensors = [*parameters, *module.buffers()]
        self.score, self.epoch, self.values = math.inf, -1, None

    def offer(self, score, epoch):
        """Keep the present state if `score` is the lowest; NaN never is. Tell whether it was."""
        better = score < self.score
        if better or self.values is None:
            self.values = [t.detach().clone() for t in self.tensors]
        if better:
            self.score, self.epoch = score, epoch
        return better

    @torch.no_grad()
    def restore(self):
        for tensor, value in zip(self.tensors, self.values, strict=True):
            tensor.copy_(value)


def _cosine(progress, step):
    """Learning-rate factor: linear rise over the first part, half a cosine down to 0 after it."""
    if progress < _WARMUP:
        return min(1.0, (progress + step) / _WARMUP)
    return 0.5 * (1 + math.cos(math.pi * (progress - _WARMUP) / (1 - _WARMUP)))


@contextlib.contextmanager
def own_torch_seed(seed, device):
    """Seed dropout's global generators of `device`, and give their state back afterwards."""
    device = torch.device(device)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        with torch.random.fork_rng(devices=[index]), torch.cuda.device(index):
            torch.default_generator.manual_seed(seed)
            torch.cuda.manual_seed(seed)
            yield
    else:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield


def train_module(
    module,
    batch_loss,
    epoch_batches,
    *,
    max_epochs,
    lr,
    weight_decay=0.0,
    validate=None,
    patience=None,
    average=0.0,
    schedule="cosine",
    grad_clip=1.0,
    callbacks=None,
    device="cpu",
    seed=0,
    verbose=0,
    compile=False,
):
    """Train a module in place with AdamW and keep its best state.

    Two calls with the same arguments give the same bits. The global random state of torch and numpy
    is neither used nor changed. Afterwards the module is on `device`, in evaluation mode.

    Parameters
    ----------
    module : torch.nn.Module
        What is trained; only parameters that require a gradient change. Copy it before if the
        original is needed.
    batch_loss : callable
        ``batch_loss(rows, epoch, generator)`` returns a dict with the scalar tensor ``"loss"``;
        other entries are scalars recorded as means over the epoch. `generator` is a torch
        generator on `device`.
    epoch_batches : callable
        ``epoch_batches(epoch, rng)`` returns a list of arrays of row numbers; `rng` is a numpy
        generator.
    max_epochs : int
        Number of epochs.
    lr : float
        Highest learning rate.
    weight_decay : float, default=0.0
        Decoupled weight decay of matrices; vectors and biases have none.
    validate : callable, default=None
        ``validate(epoch)`` returns a float, lower is better. It is called in evaluation mode,
        without gradients, with the averaged weights, before training (epoch -1) and after every
        epoch; the best state is restored at the end. None keeps the last state.
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
        Seed of batch order, dropout and `generator`.
    verbose : int, default=0
        Above 0, print one line per epoch.
    compile : bool, default=False
        Compile the module's forward while it trains.

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
        weight_decay=weight_decay,
        patience=patience,
        average=average,
        schedule=schedule,
        grad_clip=grad_clip,
        seed=seed,
        max_epochs=max_epochs,
        lr=lr,
        callbacks=callbacks,
        device=device,
        verbose=verbose,
    )
    if compile:
        module.compile()
    try:
        with own_torch_seed(seed, device):
            net.initialize().partial_fit()
    finally:
        if compile:
            module._compiled_call_impl = None  # a compiled call cannot be pickled
    return [{k: v for k, v in row.items() if k != "batches"} for row in net.history]
