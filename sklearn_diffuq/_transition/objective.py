"""Stage 4: what the unified transition is trained on, and in which order.

Three stages share the epochs. A: teacher forcing, every step from the frozen path's own state, with
input noise. B: the student's states, rolled out without gradient, with the frozen blocks asked for
their targets there. C: whole paths with their noise, followed with gradient, where the path loss
is joined by distillation and by the label loss of the averaged probabilities. Some rows of C start
from a perturbed embedding and are drawn back to the path of the unperturbed one.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from sklearn_diffuq._path.gaussian import gaussian_kl
from sklearn_diffuq._path.path import BlockwiseMean, GaussianPath
from sklearn_diffuq._path.perturbation import Perturbation
from sklearn_diffuq._propagation.propagate import tile_batch

STAGES = (0.25, 0.35)  # shares of the epochs at which stage A and stage B end
PERTURBED_SHARE = 0.25  # of the rows in stage C
INPUT_NOISE = 0.1  # standard deviation in stage A, in units of the increments'
VARIANCE_FLOOR = 0.05  # smallest variance of the path's law, in units of the increments'


@dataclass(frozen=True)
class _Route:
    """One time grid: the transition to train there, the frozen steps, and their covariance."""

    transition: nn.Module
    teacher: BlockwiseMean
    covariance: nn.Module

    @property
    def n_steps(self):
        return self.transition.n_steps


class PathObjective:
    """Loss of a batch of training rows.

    Parameters
    ----------
    backbone : Backbone
    transition : UnifiedTransition
    covariance : StateCovariance
        Covariance of the frozen path, with the scales to train under.
    grids : list of tuple of int
        Time grids to follow; every batch follows one of them, drawn at random.
    training : LabelledInputs
    temperature : float
        Temperature of the wrapped model's logits.
    path_weight, distillation_weight, label_weight : float
        Weights of the losses.
    max_epochs : int
    teacher : Backbone, default=None
        The wrapped model where `backbone` is a copy whose readout is trained; None is `backbone`.
    precision : {"float32", "bfloat16"}, default="float32"
        "bfloat16" computes the blocks under automatic mixed precision.
    """

    def __init__(
        self,
        backbone,
        transition,
        covariance,
        grids,
        training,
        temperature,
        *,
        path_weight,
        distillation_weight,
        label_weight,
        max_epochs,
        teacher=None,
        precision="float32",
    ):
        self.backbone = backbone
        self.teacher_readout = (backbone if teacher is None else teacher).readout
        self.routes = [
            _Route(transition.on(grid), BlockwiseMean(backbone, grid), covariance.on(grid))
            for grid in grids
        ]
        self.training = training
        self.mean_weight = training.weight.mean()
        self.precision = precision
        self.temperature = temperature
        self.path_weight = path_weight
        self.distillation_weight = distillation_weight
        self.label_weight = label_weight
        self.stage_ends = [share * max_epochs for share in STAGES]

    def __call__(self, rows, epoch, generator):
        """Return the losses of the batch `rows` as a dict of scalars; "loss" is the total."""
        device = generator.device
        batch = self.training.inputs.batch(rows, device=device)
        y = self.training.y[rows].to(device)
        # Relative to all rows, not to the batch: a batch of light rows has to count less.
        weight = (self.training.weight[rows] / self.mean_weight).to(device)
        mixed = self.precision == "bfloat16"
        route = self.routes[0]
        if len(self.routes) > 1:
            drawn = torch.randint(len(self.routes), (), generator=generator, device=device)
            route = self.routes[int(drawn)]
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed):
            return self._loss(route, batch, y, weight, epoch, generator)

    def _loss(self, route, batch, y, weight, epoch, generator):
        with torch.no_grad():
            h, context = self.backbone.embed(batch)
            states = [h]
            for step in range(route.n_steps):
                states.append(route.teacher(states[-1], step, context))
        if epoch < self.stage_ends[0]:
            starts = [self._perturb(route, h, s, generator) for s, h in enumerate(states[:-1])]
            loss = self._path_loss(route, starts, states[1:], context, weight)
            return {"loss": loss, "path": loss.detach()}
        if epoch < self.stage_ends[1]:
            starts, targets = self._own_states(route, h, context)
            loss = self._path_loss(route, starts, targets, context, weight)
            return {"loss": loss, "path": loss.detach()}
        return self._rolled_out(route, states, batch, context, y, weight, generator)

    @staticmethod
    def _perturb(route, h, step, generator):
        scale = INPUT_NOISE * route.covariance.token_variance(step).sqrt()
        return h + scale * torch.randn(h.shape, generator=generator, device=h.device)

    @staticmethod
    @torch.no_grad()
    def _own_states(route, h, context):
        starts, targets = [], []
        for step in range(route.n_steps):
            starts.append(h)
            targets.append(route.teacher(h, step, context))
            h = route.transition(h, step, context)
        return starts, targets

    def _path_loss(self, route, starts, targets, context, weight):
        means = [route.transition(h, s, context) for s, h in enumerate(starts)]
        return self._kl(route, means, targets, context.mask, weight)

    @staticmethod
    def _kl(route, means, targets, mask, weight):
        """Return the mean over steps, tokens and channels of KL(frozen step || unified step)."""
        total = 0.0
        for step, (mean, target) in enumerate(zip(means, targets, strict=True)):
            unit = route.covariance.token_variance(step).clamp_min(1e-12)
            variance = route.transition.variance(step) / unit
            floor = torch.full_like(variance, VARIANCE_FLOOR)
            scale = unit.sqrt()
            kl = gaussian_kl(target / scale, floor, mean / scale, floor + variance).mean(2)
            per_row = kl.mean(1) if mask is None else (kl * mask).sum(1) / mask.sum(1)
            total = total + (per_row * weight).mean()
        return total / len(means)

    def _rolled_out(self, route, states, batch, context, y, weight, generator):
        path, n = GaussianPath(route.transition, route.covariance), len(y)
        # An antithetic pair of paths; without noise both would be the mean.
        k = 2 if route.covariance.scales.any_noise else 1
        h = self._some_perturbed(states[0], context.mask, generator).repeat(k, 1, 1)
        tiled = context if k == 1 else self.backbone.embed(tile_batch(batch, k))[1]
        means = []
        for step in range(path.n_steps):
            law = path(h, step, tiled)
            means.append(law.mean)
            z = self._antithetic((n, law.factor.shape[1]), k, h.device, generator)
            eps = self._antithetic((n, *h.shape[1:]), k, h.device, generator)
            h = law.sample(z, eps)
        targets = [state.repeat(k, 1, 1) for state in states[1:]]
        path_loss = self._kl(route, means, targets, tiled.mask, weight.repeat(k))
        log_p = torch.log_softmax(self.backbone.readout(h, tiled).unflatten(0, (k, n)), -1)
        log_p = torch.logsumexp(log_p, 0) - math.log(k)
        with torch.no_grad():
            teacher = self.teacher_readout(states[-1], context) / self.temperature
        distillation = nn.functional.kl_div(
            log_p, torch.log_softmax(teacher, -1), reduction="none", log_target=True
        ).sum(1)
        label = nn.functional.nll_loss(log_p, y, reduction="none")
        distillation, label = (distillation * weight).mean(), (label * weight).mean()
        loss = (
            self.path_weight * path_loss
            + self.distillation_weight * distillation
            + self.label_weight * label
        )
        parts = {"path": path_loss, "distillation": distillation, "label": label}
        return {"loss": loss} | {name: value.detach() for name, value in parts.items()}

    @staticmethod
    def _some_perturbed(h, mask, generator):
        perturbed = Perturbation(generator)(h, mask)
        drawn = torch.rand(len(h), generator=generator, device=generator.device)
        return torch.where((drawn < PERTURBED_SHARE).to(h.device)[:, None, None], perturbed, h)

    @staticmethod
    def _antithetic(shape, k, device, generator):
        draw = torch.randn(shape, generator=generator, device=device)
        return torch.cat([draw, -draw][:k])


@torch.no_grad()
def rolled_out_r2(transition, teacher, h, context):
    """Return, per step, the R^2 of the student's rolled-out increments of the state.

    ``1 - ||h_s^student - h_s||^2 / ||h_s - h_0 - mean||^2`` over rows, tokens and channels.

    Parameters
    ----------
    transition, teacher : Mean
    h : Tensor of shape (n, t, d)
        Embedding.
    context : Context
    """
    start, own, scores = h, h, []
    real = slice(None) if context.mask is None else context.mask
    for step in range(teacher.n_steps):
        h, own = teacher(h, step, context), transition(own, step, context)
        change = (h - start)[real].reshape(-1, h.shape[-1])
        error = (own - h)[real].square().sum()
        scores.append(float(1 - error / (change - change.mean(0)).square().sum()))
    return scores
