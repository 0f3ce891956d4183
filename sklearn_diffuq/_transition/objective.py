"""What the unified transition is trained on, and in which order (section 3 of the user guide).

Three stages share the epochs. A: teacher forcing, every step from the frozen path's own state, with
input noise. B: the student's states, rolled out without gradient, with the frozen blocks asked for
their targets there. C: whole paths with their noise, followed with gradient, where the path loss
is joined by distillation and by the label loss of the averaged probabilities. Some rows of C start
from a perturbed embedding and are drawn back to the path of the unperturbed one.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._backbones.context import Batch, Context, mean_over_tokens
from sklearn_diffuq._inputs.encoded_inputs import LabelledInputs
from sklearn_diffuq._path.covariance import NO_NOISE, NoiseScales, StateCovariance
from sklearn_diffuq._path.gaussian import gaussian_kl, tile
from sklearn_diffuq._path.mean import Mean
from sklearn_diffuq._path.path import GaussianPath
from sklearn_diffuq._path.perturbation import Perturbation
from sklearn_diffuq._path.time_grid import Grid, steps_of
from sklearn_diffuq._propagation.propagate import tile_batch
from sklearn_diffuq._transition.batched_steps import BatchedSteps, batched_steps
from sklearn_diffuq._transition.teacher import Teacher
from sklearn_diffuq._transition.training_options import TrainingOptions
from sklearn_diffuq._transition.unified_transition import MergedSteps, UnifiedTransition

STAGES = (0.25, 0.35)  # shares of the epochs at which stage A and stage B end
PERTURBED_SHARE = 0.25  # of the rows in stage C
INPUT_NOISE = 0.1  # standard deviation in stage A, in units of the increments'
VARIANCE_FLOOR = 0.05  # smallest variance of the path's law, in units of the increments'

Losses = dict[str, Tensor]


class PathObjective:
    """Loss of a batch of training rows (eq. 3.1).

    Parameters
    ----------
    backbone : Backbone
    transition : UnifiedTransition
    covariance : StateCovariance
        Covariance of the frozen path.
    scales : NoiseScales
        The noise to train under.
    grids : sequence of tuple of int
        Time grids to follow; every batch follows one of them, drawn at random.
    training : LabelledInputs
    temperature : float
        Temperature of the wrapped model's logits.
    options : TrainingOptions
    """

    def __init__(
        self,
        backbone: Backbone,
        transition: UnifiedTransition,
        covariance: StateCovariance,
        scales: NoiseScales,
        grids: Sequence[Grid],
        training: LabelledInputs,
        temperature: float,
        options: TrainingOptions,
    ) -> None:
        self.backbone = backbone
        self.transition = transition
        self.teacher = Teacher(backbone, training.inputs, grids)
        self.covariance = covariance
        self.scales = scales if scales.any_noise else NO_NOISE
        self.grids = list(grids)
        self.training = training
        self.mean_weight = training.weight.mean()
        self.temperature = temperature
        self.options = options
        self.stage_ends = [share * options.loop.max_epochs for share in STAGES]
        # On the host, since a drawn grid decides what the device is asked to do.
        self._draws = torch.Generator().manual_seed(options.loop.seed)
        self._units = {
            grid: torch.stack([covariance.token_variance(step) for step in steps_of(grid)])
            for grid in grids
        }
        self._batched: dict[Grid, BatchedSteps | None] = {}
        self._proved: dict[Grid, int] = {}  # for how many tokens

    def __call__(self, rows: np.ndarray, epoch: int, generator: torch.Generator) -> Losses:
        """Return the losses of the batch `rows` as a dict of scalars; "loss" is the total."""
        device = generator.device
        y = self.training.y[rows].to(device)
        # Relative to all rows, not to the batch: a batch of light rows has to count less.
        weight = (self.training.weight[rows] / self.mean_weight).to(device)
        grid = self.grids[0]
        if len(self.grids) > 1:
            grid = self.grids[int(torch.randint(len(self.grids), (), generator=self._draws))]
        return self._loss(grid, rows, y, weight, epoch, generator)

    def _precision(self, device: torch.device) -> torch.autocast:
        """Return the context that embedding and blocks run in; the losses stay in float32."""
        mixed = self.options.mixed_precision
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed)

    def _loss(
        self,
        grid: Grid,
        rows: np.ndarray,
        y: Tensor,
        weight: Tensor,
        epoch: int,
        generator: torch.Generator,
    ) -> Losses:
        with self._precision(generator.device):
            batch, context, states = self.teacher(rows, grid, generator.device)
        merged = self.transition.merged(self._precision)
        if epoch >= self.stage_ends[1]:
            return self._rolled_out(grid, merged, states, context, batch, y, weight, generator)
        if epoch < self.stage_ends[0]:
            starts, targets = self._noisy_starts(grid, states[:-1], generator), states[1:]
        else:
            starts, targets = self._own_states(grid, merged, states[0], context)
        means = self._means(grid, merged, starts, batch, context)
        loss = self._path_loss(grid, means, targets, context.mask, weight)
        return {"loss": loss, "path": loss.detach()}

    def _means(
        self, grid: Grid, merged: MergedSteps, starts: Tensor, batch: Batch, context: Context
    ) -> Tensor:
        """Return the means (S, n, t, d) of steps from given states, in one call where possible."""
        n_tokens = starts.shape[2]
        # proved again for longer rows: blocks may be local beyond some length
        if n_tokens > self._proved.get(grid, 0) and self._batched.get(grid, True) is not None:
            self._batched[grid] = batched_steps(self.transition, grid, batch)
            self._proved[grid] = n_tokens
        batched = self._batched[grid]
        with self._precision(starts.device):
            tiled = None if batched is None else batched.context(batch, context)
        if batched is not None and tiled is not None:
            return batched(merged, starts, tiled)
        steps = zip(steps_of(grid), starts, strict=True)
        return torch.stack([merged(start, interval, context) for interval, start in steps])

    def _noisy_starts(self, grid: Grid, states: Tensor, generator: torch.Generator) -> Tensor:
        """Return the states (S, n, t, d) that steps start from, with a little noise (stage A)."""
        scale = INPUT_NOISE * self._units[grid].sqrt()[:, None, None]
        noise = torch.randn(states.shape, generator=generator, device=states.device)
        return torch.addcmul(states, scale, noise)

    @torch.no_grad()
    def _own_states(
        self, grid: Grid, merged: MergedSteps, h: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        """Roll the transition out; return its states and what the frozen steps make of them."""
        starts, targets = [], []
        for interval in steps_of(grid):
            starts.append(h)
            with self._precision(h.device):
                targets.append(self.backbone.advance(h, context, *interval).to(h))
            h = merged(h, interval, context)
        return torch.stack(starts), torch.stack(targets)

    def _path_loss(
        self, grid: Grid, means: Tensor, targets: Tensor, mask: Tensor | None, weight: Tensor
    ) -> Tensor:
        """Return the mean over steps, tokens, channels of KL(frozen || unified step); eq. 3.3.

        `means` and `targets` have shape (S, n, t, d), `mask` (n, t) and `weight` (n,).
        """
        unit = self._units[grid].clamp_min(1e-12)
        variance = (self.transition.variances_of(steps_of(grid)) / unit)[:, None, None]
        scale = unit.sqrt()[:, None, None]
        floor = torch.full_like(variance, VARIANCE_FLOOR)
        kl = gaussian_kl(targets / scale, floor, means / scale, floor + variance).mean(3)
        n_steps = len(kl)
        mask = None if mask is None else tile(mask, n_steps)
        return (mean_over_tokens(kl.flatten(0, 1), mask) * tile(weight, n_steps)).mean()

    def _rolled_out(
        self,
        grid: Grid,
        merged: MergedSteps,
        states: Tensor,
        context: Context,
        batch: Batch,
        y: Tensor,
        weight: Tensor,
        generator: torch.Generator,
    ) -> Losses:
        """Return the losses of whole paths (stage C), by their averaged probability (eq. 3.2)."""
        # An antithetic pair of paths; without noise both would be the mean.
        k = 2 if self.scales.any_noise else 1
        with self._precision(states.device):
            tiled = context if k == 1 else self.backbone.embed(tile_batch(batch, k))[1]
        h = _some_perturbed(states[0], context.mask, generator)
        path = GaussianPath(merged, self.covariance, grid, self.scales)
        h, means = _rolled(path, tile(h, k), tiled, k, generator)
        targets = states[1:].repeat(1, k, 1, 1)
        path_loss = self._path_loss(grid, means, targets, tiled.mask, tile(weight, k))
        log_p = torch.log_softmax(self.backbone.readout(h, tiled).unflatten(0, (k, -1)), -1)
        log_p = torch.logsumexp(log_p, 0) - math.log(k)
        with torch.no_grad():
            teacher = self.backbone.readout(states[-1], context) / self.temperature
        distillation = nn.functional.kl_div(
            log_p, torch.log_softmax(teacher, -1), reduction="none", log_target=True
        ).sum(1)
        label = nn.functional.nll_loss(log_p, y, reduction="none")
        parts = {
            "path": path_loss,
            "distillation": (distillation * weight).mean(),
            "label": (label * weight).mean(),
        }
        options = self.options
        loss = (
            options.path_weight * parts["path"]
            + options.distillation_weight * parts["distillation"]
            + options.label_weight * parts["label"]
        )
        return {"loss": loss} | {name: value.detach() for name, value in parts.items()}


def _rolled(
    path: GaussianPath, h: Tensor, context: Context, k: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw k antithetic paths; return their ends and the means (S, k * n, t, d) of their steps."""
    n, means = len(h) // k, []
    for step in range(path.n_steps):
        law = path(h, step, context, path.observe(h, step, context))
        means.append(law.mean)
        z = _antithetic((n, law.factor.shape[1]), k, generator)
        eps = _antithetic((n, *h.shape[1:]), k, generator)
        h = law.sample(z, eps)
    return h, torch.stack(means)


def _some_perturbed(h: Tensor, mask: Tensor | None, generator: torch.Generator) -> Tensor:
    perturbed = Perturbation(generator)(h, mask)
    drawn = torch.rand(len(h), generator=generator, device=generator.device)
    return torch.where((drawn < PERTURBED_SHARE).to(h.device)[:, None, None], perturbed, h)


def _antithetic(shape: tuple[int, ...], k: int, generator: torch.Generator) -> Tensor:
    draw = torch.randn(shape, generator=generator, device=generator.device)
    return torch.cat([draw, -draw][:k])


@torch.no_grad()
def rolled_out_r2(
    transition: Mean, grid: Grid, states: Sequence[Tensor], context: Context
) -> list[float]:
    """Return, per step, the R^2 of the student's rolled-out increments of the state (eq. 4.1).

    ``1 - ||h_s^student - h_s||^2 / ||h_s - h_0 - mean||^2`` over rows, tokens and channels.

    Parameters
    ----------
    transition : Mean
    grid : tuple of int
    states : sequence of Tensor of shape (n, t, d)
        Those of the frozen path, one for each time of the grid.
    context : Context
    """
    start = own = states[0]
    scores = []
    real = slice(None) if context.mask is None else context.mask
    for interval, h in zip(steps_of(grid), states[1:], strict=True):
        own = transition(own, interval, context)
        change = (h - start)[real].reshape(-1, h.shape[-1])
        error = (own - h)[real].square().sum()
        scores.append(float(1 - error / (change - change.mean(0)).square().sum()))
    return scores
