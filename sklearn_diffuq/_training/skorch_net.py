"""The training loop itself: the only file that imports skorch."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import skorch
import torch
from skorch.callbacks import EpochTimer, GradientNormClipping, PassthroughScoring, PrintLog

from sklearn_diffuq._training.loop_options import LoopOptions
from sklearn_diffuq._training.weights import BestWeights, MovingAverage

WARMUP = 0.05  # share of all steps over which the learning rate rises


class Net(skorch.NeuralNet):
    """skorch net whose batches are arrays of row numbers and whose loss is a plain function."""

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        batch_loss: Callable[[np.ndarray, int, torch.Generator], dict[str, torch.Tensor]],
        epoch_batches: Callable[[int, np.random.Generator], Sequence[np.ndarray]],
        validate: Callable[[int], float] | None,
        options: LoopOptions,
    ) -> None:
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
    def _default_callbacks(self) -> list[tuple[str, Any]]:
        callbacks = [
            ("epoch_timer", EpochTimer()),
            ("train_loss", PassthroughScoring("train_loss", on_train=True)),
        ]
        if self.options.grad_clip is not None:
            callbacks.append(("grad_clip", GradientNormClipping(self.options.grad_clip)))
        if self.verbose:
            callbacks.append(("print_log", PrintLog()))
        return callbacks

    def initialize_optimizer(self, triggered_directly: bool | None = None) -> "Net":
        named = [(n, p) for n, p in self.module_.named_parameters() if p.requires_grad]
        self.named_, self.trained_ = named, [p for _, p in named]
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

    def get_all_learnable_params(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return iter(self.named_)  # found once: to walk through the module takes as long as to clip

    def train_step_single(self, batch: np.ndarray, **fit_params: Any) -> dict[str, torch.Tensor]:
        step = self.batch_loss(batch, self.epoch_, self.generator_)
        step["loss"].backward()
        return {name: torch.as_tensor(value).detach() for name, value in step.items()}

    def train_step(self, batch: np.ndarray, **fit_params: Any) -> dict[str, Any]:
        if self.options.schedule == "cosine":
            progress = (self.epoch_ + self.position_ / self.n_batches_) / self.max_epochs
            for group in self.optimizer_.param_groups:
                group["lr"] = self.lr * _cosine(progress, 1 / (self.n_batches_ * self.max_epochs))
        self.optimizer_.zero_grad()
        step = self.train_step_single(batch)
        named = self.get_all_learnable_params()
        self.notify("on_grad_computed", named_parameters=list(named), batch=batch, training=True)
        # The device itself skips a step whose loss is not finite; the end of the epoch says so.
        self.optimizer_.found_inf = (~torch.isfinite(step["loss"])).float()  # type: ignore[attr-defined]
        self.optimizer_.step()
        self.position_ += 1
        self.average_.update()
        return step

    def run_single_epoch(
        self, iterator: Sequence[np.ndarray], training: bool, prefix: str, step_fn: Any, **_: Any
    ) -> None:
        """Run the steps of an epoch; what they return is fetched once, at its end.

        To fetch a scalar in every step would have the device wait for the next one.
        """
        steps: list[dict[str, torch.Tensor]] = []
        try:
            for batch in iterator:
                self.notify("on_batch_begin", batch=batch, training=training)
                steps.append(step_fn(batch))
                seen = {"loss": steps[-1]["loss"], "y_pred": None}
                # as a tensor: who reads it waits for it
                self.history.record_batch(f"{prefix}_loss", seen["loss"])
                self.notify("on_batch_end", batch=batch, training=training, **seen)
        except Exception:  # what went wrong may only follow from a loss that is not finite
            self._fetched(steps)
            raise
        weights = np.array([len(batch) for batch in iterator])
        means = self._fetched(steps)
        for entry, loss, weight in zip(
            self.history[-1]["batches"], means.pop("loss"), weights.tolist(), strict=True
        ):
            entry |= {f"{prefix}_loss": loss, f"{prefix}_batch_size": weight}
        self.history.record(f"{prefix}_batch_count", len(steps))
        for name, values in means.items():
            self.history.record(name, float(np.average(values, weights=weights)))

    def _fetched(self, steps: list[dict[str, torch.Tensor]]) -> dict[str, list[float]]:
        """Return the values of all steps; refuse losses that are not finite."""
        names = steps[0] if steps else {}
        values = {name: torch.stack([step[name] for step in steps]).tolist() for name in names}
        bad = [value for value in values.get("loss", []) if not math.isfinite(value)]
        if bad:
            raise FloatingPointError(
                f"The training loss became {bad[0]} in epoch {self.epoch_ + 1}. Lower `lr`, "
                f"which is {self.lr}, or check the scale of the inputs."
            )
        return values

    def fit_loop(self, X: None = None, y: None = None, epochs: None = None, **_: Any) -> "Net":
        rng = np.random.default_rng(self.options.seed)
        self.generator_ = torch.Generator(self.device).manual_seed(self.options.seed + 1)
        self.average_ = MovingAverage(self.trained_, self.options.average)
        best = BestWeights(self.module_, self.trained_)
        if self.validate is not None:
            best.offer(self._score(-1), -1)
        for epoch in range(self.max_epochs):
            self.epoch_, self.position_ = epoch, 0
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

    def _end_epoch(self, epoch: int, best: BestWeights) -> None:
        self.history.record("lr", self.optimizer_.param_groups[0]["lr"])
        if self.validate is None:
            return
        with self.average_.swapped_in():
            score = self._score(epoch)
            self.history.record("valid_loss", score)
            self.history.record("valid_loss_best", best.offer(score, epoch))

    def _score(self, epoch: int) -> float:
        self.module_.eval()
        with torch.no_grad():
            assert self.validate is not None
            return float(self.validate(epoch))

    def _callback_stops(self) -> bool:
        """Run the callbacks; they ask for a stop by raising KeyboardInterrupt.

        It is caught only here, so that an interrupt in training or validation reaches the user.
        """
        try:
            self.notify("on_epoch_end", dataset_train=None, dataset_valid=None)
        except KeyboardInterrupt:
            return True
        return False

    def _patience_is_over(self, epoch: int, best: BestWeights) -> bool:
        return (
            self.validate is not None
            and self.options.patience is not None
            and epoch - max(best.epoch, -1) >= self.options.patience
        )

    def _finish(self, best: BestWeights) -> None:
        if self.validate is not None:
            best.restore()
        else:
            self.average_.copy_to_module()
        self.module_.eval()

    def partial_fit(self, X: None = None, y: None = None, classes: None = None, **_: Any) -> "Net":
        # skorch's own swallows every KeyboardInterrupt
        self.notify("on_train_begin", X=None, y=None)
        self.fit_loop()
        self.notify("on_train_end", X=None, y=None)
        return self


def _cosine(progress: float, step: float) -> float:
    """Learning-rate factor: linear rise over the first part, half a cosine down to 0 after it."""
    if progress < WARMUP:
        return min(1.0, (progress + step) / WARMUP)
    return 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))
