"""Calibrating paths on held-out samples, for every kind of inference."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._calibration.calibration import Calibration
from sklearn_diffuq._calibration.noise_scales import LabelledLaw, fit_noise
from sklearn_diffuq._calibration.temperature import all_paths_nll, fit_temperature
from sklearn_diffuq._inputs.batching import unpadded_batches
from sklearn_diffuq._inputs.encoded_inputs import LabelledInputs
from sklearn_diffuq._inputs.rows import MIN_NOISE_ROWS, random_rows
from sklearn_diffuq._path.covariance import NO_NOISE, NoiseScales
from sklearn_diffuq._path.distance import widening
from sklearn_diffuq._path.mean import Mean
from sklearn_diffuq._path.path import GaussianPath
from sklearn_diffuq._path.perturbation import Perturbation
from sklearn_diffuq._path.time_grid import Grid
from sklearn_diffuq._propagation.linearised import LinearisedPath, linearise_all, moment_draws
from sklearn_diffuq._propagation.path_noise import PathNoise
from sklearn_diffuq._propagation.propagate import mean_logits, propagate

MAX_NOISE_ROWS = 2048  # more say little that is new about three scales
MAX_PERTURBED_ROWS = 512
N_SAMPLED = 8  # paths that are really drawn for each sample
MAX_SAMPLED_ROWS = 512  # noise is tried on real paths of so many samples
SAMPLED_CHUNK = 16, 1024  # rows and tokens of a batch, of which every path is a copy
SHRINKAGE = (0.25, 0.5, 1.0)  # multiples of the linearised path's noise to be tried on real paths
UNTRIED_SHRINKAGE = 0.5  # the multiple that sampling takes where none was tried


@dataclass(frozen=True)
class Reference:
    """What the mean of a path says of the held-out samples.

    That of the frozen path is computed once per fit and read by all that compare with it.

    Attributes
    ----------
    logits : Tensor of shape (n, n_classes), float32
    temperature : float
        The best one for the logits.
    nll : float
        Negative log-likelihood under it, in nats per sample.
    law : LinearisedPath or None
        Of the samples that noise is fitted on, where the pass has linearised them.
    """

    logits: Tensor
    temperature: float
    nll: float
    law: LinearisedPath | None = None


@dataclass(frozen=True)
class Calibrator:
    """Held-out samples, and what paths are calibrated to on them.

    Attributes
    ----------
    backbone : Backbone
    held_out : LabelledInputs
        Samples that nothing was trained on.
    distance : bool
        Whether noise and temperature may grow with the distance to the training data.
    seed : int
    draws : bool, default=False
        Whether the noise of "sampling" is tried on real paths, at the price of many passes.
    """

    backbone: Backbone
    held_out: LabelledInputs
    distance: bool
    seed: int
    draws: bool = False

    @cached_property
    def noise_rows(self) -> np.ndarray:
        """Rows that noise is fitted on, in random order: the first of them are a fair sample."""
        n = len(self.held_out)
        if n < MIN_NOISE_ROWS:
            return np.empty(0, dtype=np.intp)
        return random_rows(n, MAX_NOISE_ROWS, self.seed, shuffle=True)

    @cached_property
    def noise_part(self) -> LabelledInputs:
        """The samples that noise is fitted on."""
        return self.held_out.take(self.noise_rows)

    def reference(self, path: GaussianPath) -> Reference:
        """Run the mean of a path over the held-out samples, each once, and linearise it."""
        rest = np.setdiff1d(np.arange(len(self.held_out)), self.noise_rows)
        law, parts = None, []
        if len(self.noise_rows):
            law = linearise_all(path, self.backbone, self.noise_part.inputs)
            parts.append(law.logits.float())
        if len(rest):
            inputs = self.held_out.inputs.take(rest)
            parts.append(mean_logits(path.mean, path.grid, self.backbone, inputs))
        order = np.argsort(np.concatenate([self.noise_rows, rest]))
        return self._reference(torch.cat(parts)[torch.from_numpy(order)], law)

    def run_mean(self, mean: Mean, grid: Grid) -> Reference:
        """Run a mean over the held-out samples, without linearising it."""
        return self._reference(mean_logits(mean, grid, self.backbone, self.held_out.inputs), None)

    def _reference(self, logits: Tensor, law: LinearisedPath | None) -> Reference:
        y, weight = self.held_out.y, self.held_out.weight
        return Reference(logits, *fit_temperature(logits[None], y, weight), law)

    def calibrate(self, path: GaussianPath, mean: Reference) -> dict[str, Calibration]:
        """Fit noise scales and temperatures of a path for every kind of inference.

        Parameters
        ----------
        path : GaussianPath
            Its scales are not used.
        mean : Reference
            Of its mean; linearised here if it is not yet.

        Returns
        -------
        calibrations : dict from {"mean", "moments", "sampling"} to Calibration
        """
        constant = Calibration(NO_NOISE, mean.temperature, mean.nll)
        if not len(self.noise_rows):
            return dict.fromkeys(("mean", "moments", "sampling"), constant)
        law = mean.law
        if law is None:
            law = linearise_all(path, self.backbone, self.noise_part.inputs)
        moments = self._moments(path, law)
        sampling = moments
        if moments.has_noise and self.draws:
            sampling = self._drawn_sampling(path, law, moments.scales)
        elif moments.has_noise:
            sampling = self._linearised_sampling(law, moments.scales)
        return {"mean": constant, "moments": moments, "sampling": sampling}

    def noise_scales(self, path: GaussianPath, mean: Reference) -> NoiseScales:
        """Return the noise that the labels support on a path whose reference is linearised."""
        return NO_NOISE if mean.law is None else self._moments(path, mean.law).scales

    def _moments(self, path: GaussianPath, law: LinearisedPath) -> Calibration:
        """Fit noise scales and temperature of the linearised path."""
        clean = LabelledLaw(law, self.noise_part.y, self.noise_part.weight)
        perturbed = self._perturbed(path) if self.distance else None
        return fit_noise(clean, perturbed, distance=self.distance, seed=self.seed)

    def _perturbed(self, path: GaussianPath) -> LabelledLaw:
        """Linearise perturbed copies of some samples."""
        part = self.noise_part
        some = part.take(np.arange(min(len(part), MAX_PERTURBED_ROWS)))
        perturb = Perturbation(torch.Generator().manual_seed(self.seed))
        law = linearise_all(path, self.backbone, some.inputs, perturb)
        return LabelledLaw(law, some.y, some.weight)

    def _linearised_sampling(self, law: LinearisedPath, unit: NoiseScales) -> Calibration:
        """Return `UNTRIED_SHRINKAGE` of the scales `unit`, with the temperature of the law."""
        part, factor = self.noise_part, UNTRIED_SHRINKAGE
        scales = NoiseScales(factor * unit.shared, factor * unit.token, unit.distance)
        z = moment_draws(law.logits.shape[1], self.seed)
        drawn = law.sample(scales.shared, scales.token, scales.distance, z)
        logits = (drawn / widening(unit.distance, law.distance)[:, None]).float()
        return Calibration(scales, *fit_temperature(logits, part.y, part.weight))

    def _drawn_sampling(
        self, path: GaussianPath, law: LinearisedPath, unit: NoiseScales
    ) -> Calibration:
        """Return the best of the multiples `SHRINKAGE` of the scales `unit`, and of no noise.

        The linearised path overrates the noise that real paths need, so real ones are drawn here.
        The draws differ from batch to batch, and the multiples are compared by the loss of
        infinitely many paths: the answer is about paths, and not about the few that are drawn. The
        temperature is the best one for these few; the estimate for infinitely many has no minimum
        that can be trusted.
        """
        n = min(len(self.noise_part), MAX_SAMPLED_ROWS)
        part, law = self.noise_part.take(np.arange(n)), law.take(slice(n))
        noise = PathNoise.of(path, N_SAMPLED, self.seed)
        without = law.logits.float() / widening(unit.distance, law.distance.float())[:, None]
        fitted = fit_temperature(without[None], part.y, part.weight)
        tried = [Calibration(NoiseScales(distance=unit.distance), *fitted)]
        for factor in SHRINKAGE:
            scales = NoiseScales(factor * unit.shared, factor * unit.token, unit.distance)
            logits = _drawn(path.with_scales(scales), self.backbone, part, noise)
            temperature, _ = fit_temperature(logits, part.y, part.weight)
            nll = float(all_paths_nll(logits, part.y, temperature, part.weight))
            tried.append(Calibration(scales, temperature, nll))
        return min(tried, key=lambda calibration: calibration.nll)


@torch.no_grad()
def _drawn(
    path: GaussianPath, backbone: Backbone, labelled: LabelledInputs, noise: PathNoise
) -> Tensor:
    """Return the logits (K, n, n_classes) of paths, less what the distance takes from them."""
    order, parts = [], []
    batches = unpadded_batches(labelled.inputs, backbone.device, *SAMPLED_CHUNK)
    for i, (rows, batch) in enumerate(batches):
        end = propagate(path, backbone, batch, noise.redrawn(i))
        growth = widening(path.scales.distance, end.distance)[:, None]
        parts.append((end.logits / growth).float())
        order.append(rows)
    back = torch.from_numpy(np.argsort(np.concatenate(order)))
    return torch.cat(parts, 1).cpu()[:, back]
