"""Stage 4: what the unified transition is trained on, and in which order.

Three stages share the epochs. A: teacher forcing, every step from the frozen path's own state, with
input noise. B: the student's states, rolled out without gradient, with the frozen blocks asked for
their targets there. C: whole paths with their noise, followed with gradient, where the path loss
is joined by distillation and by the label loss of the averaged probabilities.
"""

import math

import torch
from torch import nn

from sklearn_diffuq._covariance import NoiseScales
from sklearn_diffuq._path import BlockwiseMean, GaussianPath, gaussian_kl
from sklearn_diffuq._propagation import tile_batch

STAGES = (0.25, 0.35)  # shares of the epochs at which stage A and stage B end
INPUT_NOISE = 0.1  # standard deviation in stage A, in units of the increments'
VARIANCE_FLOOR = 0.05  # smallest variance of the path's law, in units of the increments'


class PathObjective:
    """Loss of a batch of training rows.

    Parameters
    ----------
    backbone : Backbone
    transition : UnifiedTransition
    covariance : StateCovariance
        Covariance of the frozen path, with the scales to train under.
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
        self.transition = transition
        self.teacher = BlockwiseMean(backbone, transition.grid)
        self.covariance = covariance
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
        device = self.covariance.factors.device
        batch = self.training.inputs.batch(rows, device=device)
        y = self.training.y[rows].to(device)
        # Relative to all rows, not to the batch: a batch of light rows has to count less.
        weight = (self.training.weight[rows] / self.mean_weight).to(device)
        mixed = self.precision == "bfloat16"
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed):
            return self._loss(batch, y, weight, epoch, generator)

    def _loss(self, batch, y, weight, epoch, generator):
        with torch.no_grad():
            h, context = self.backbone.embed(batch)
            states = [h]
            for step in range(self.transition.n_steps):
                states.append(self.teacher(states[-1], step, context))
        if epoch < self.stage_ends[0]:
            starts = [self._perturb(h, s, generator) for s, h in enumerate(states[:-1])]
            loss = self._path_loss(starts, states[1:], context, weight)
            return {"loss": loss, "path": loss.detach()}
        if epoch < self.stage_ends[1]:
            starts, targets = self._own_states(h, context)
            loss = self._path_loss(starts, targets, context, weight)
            return {"loss": loss, "path": loss.detach()}
        return self._rolled_out(states, batch, context, y, weight, generator)

    def _perturb(self, h, step, generator):
        scale = INPUT_NOISE * self.covariance.token_variances[step].sqrt()
        return h + scale * torch.randn(h.shape, generator=generator, device=h.device)

    @torch.no_grad()
    def _own_states(self, h, context):
        starts, targets = [], []
        for step in range(self.transition.n_steps):
            starts.append(h)
            targets.append(self.teacher(h, step, context))
            h = self.transition(h, step, context)
        return starts, targets

    def _path_loss(self, starts, targets, context, weight):
        means = [self.transition(h, s, context) for s, h in enumerate(starts)]
        return self._kl(means, targets, context.mask, weight)

    def _kl(self, means, targets, mask, weight):
        """Return the mean over steps, tokens and channels of KL(frozen step || unified step)."""
        total = 0.0
        for step, (mean, target) in enumerate(zip(means, targets, strict=True)):
            unit = self.covariance.token_variances[step].clamp_min(1e-12)
            variance = self.transition.variance(step) / unit
            floor = torch.full_like(variance, VARIANCE_FLOOR)
            scale = unit.sqrt()
            kl = gaussian_kl(target / scale, floor, mean / scale, floor + variance).mean(2)
            per_row = kl.mean(1) if mask is None else (kl * mask).sum(1) / mask.sum(1)
            total = total + (per_row * weight).mean()
        return total / len(means)

    def _rolled_out(self, states, batch, context, y, weight, generator):
        path, n = GaussianPath(self.transition, self.covariance), len(y)
        # An antithetic pair of paths; without noise both would be the mean.
        k = 1 if self.covariance.scales == NoiseScales() else 2
        h = states[0].repeat(k, 1, 1)
        tiled = context if k == 1 else self.backbone.embed(tile_batch(batch, k))[1]
        means = []
        for step in range(path.n_steps):
            law = path(h, step, tiled)
            means.append(law.mean)
            z = self._antithetic((n, law.factor.shape[1]), k, h.device, generator)
            eps = self._antithetic((n, *h.shape[1:]), k, h.device, generator)
            h = law.sample(z, eps)
        targets = [state.repeat(k, 1, 1) for state in states[1:]]
        path_loss = self._kl(means, targets, tiled.mask, weight.repeat(k))
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
