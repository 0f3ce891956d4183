"""A calibrated path: from encoded samples to the probabilities of its paths."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._backbones.context import Batch
from sklearn_diffuq._calibration.calibration import Calibration
from sklearn_diffuq._calibration.temperature import path_probabilities
from sklearn_diffuq._inputs.batching import map_chunks
from sklearn_diffuq._inputs.encoded_inputs import EncodedInputs
from sklearn_diffuq._inputs.few_rows import FewRows
from sklearn_diffuq._inputs.not_finite import refuse_not_finite
from sklearn_diffuq._path.distance import widening
from sklearn_diffuq._path.mean import MixedMean
from sklearn_diffuq._path.path import GaussianPath
from sklearn_diffuq._propagation.linearised import moment_draws
from sklearn_diffuq._propagation.path_noise import PathNoise
from sklearn_diffuq._propagation.propagate import ShowEmbedding, propagate, propagate_few

Reduce = Callable[[np.ndarray], list[np.ndarray]]


@dataclass(frozen=True)
class CalibratedPath:
    """A path with the noise and the temperature of one kind of inference.

    Attributes
    ----------
    path : GaussianPath
    calibration : Calibration
        Of `inference`.
    inference : {"sampling", "moments", "mean"}
    n_samples : int
        Number of paths of "sampling".
    seed : int
        Of the draws.
    mixed : bool, default=False
        Whether steps compute in bfloat16; covariance, readout and probabilities never do.
    few : FewRows
        What is known of chunks of few rows.
    """

    path: GaussianPath
    calibration: Calibration
    inference: str
    n_samples: int
    seed: int
    mixed: bool = False
    few: FewRows = field(default_factory=FewRows)

    def probabilities(
        self,
        backbone: Backbone,
        inputs: EncodedInputs,
        reduce: Reduce,
        *,
        details: bool = False,
        look: ShowEmbedding | None = None,
    ) -> list[np.ndarray]:
        """Propagate samples and reduce the probabilities of their paths (eqs. 6.1, 6.3, 6.4).

        Parameters
        ----------
        backbone : Backbone
        inputs : EncodedInputs of length n
        reduce : callable
            ``reduce(proba)`` takes the class probabilities of the paths, (K, m, n_classes), and
            returns a list of arrays of length m.
        details : bool, default=False
            Whether to append the variance of each step, (n, n_steps), and the distance to the
            training data, (n,), to the results.
        look : callable, default=None
            ``look(h, context)`` is shown the embeddings, chunk by chunk.

        Returns
        -------
        results : list of ndarray of length n
            What `reduce` returned, for all samples.
        """
        calibration, scales = self.calibration, self.calibration.scales
        noise, draws = self._noise(), self._draws()
        if noise is None and not details:
            # Noise on the way is not seen: do not measure the distance of the embedding for it.
            scales = replace(scales, shared=0.0, token=0.0)
        path = replace(self.path.to(backbone.device), scales=scales, is_watched=details)
        if self.mixed:
            path = replace(path, mean=MixedMean(path.mean))

        def of_batch(batch: Batch, n_rows: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
            if len(next(iter(batch.values()))) < n_rows:
                end = propagate_few(path, backbone, batch, n_rows, look)
            else:
                end = propagate(path, backbone, batch, noise, look)
            logits, distance = end.logits.cpu(), end.distance.cpu()
            refuse_not_finite(logits.transpose(0, 1))  # before anything is made of them
            if draws is not None and calibration.table is not None:
                growth = widening(2 * scales.distance, distance)
                logits = calibration.table.sample(logits[0], growth, draws)
            proba = path_probabilities(logits, calibration.temperature_at(distance)).numpy()
            values = reduce(proba / proba.sum(2, keepdims=True))
            if details:
                values += [end.variance.cpu().numpy(), distance.numpy()]
            # copies, since values may be parts of larger arrays
            tensors = tuple(torch.from_numpy(np.array(value, order="C")) for value in values)
            return tensors, end.seen

        key = path.grid, scales, self.inference, self.mixed, details
        device = backbone.device
        # Paths of one row share a chunk, and attention judges a state at once.
        as_few = noise is None and path.covariance.keeps_looks

        def of_chunk(n_rows: int, rows: np.ndarray, length: int | None) -> tuple[Tensor, ...]:
            if as_few:
                return self.few.run(key, of_batch, inputs, n_rows, rows, length, device)
            return of_batch(inputs.batch(rows, length, device), len(rows))[0]

        with backbone.frozen(), torch.no_grad():
            n_paths = 1 if noise is None else self.n_samples
            results = map_chunks(of_chunk, inputs, device, n_paths)
        return [result.double().numpy() for result in results]

    def _noise(self) -> PathNoise | None:
        if self.calibration.has_noise and self.inference == "sampling":
            return PathNoise.of(self.path, self.n_samples, self.seed)
        return None

    def _draws(self) -> Tensor | None:
        calibration = self.calibration
        if calibration.has_noise and calibration.table and self.inference == "moments":
            return moment_draws(calibration.table.covariance.shape[1], self.seed)
        return None


def familiarity(path: CalibratedPath, backbone: Backbone, inputs: EncodedInputs) -> np.ndarray:
    """Return minus the mean distance of each sample to the training data, (n,); eq. 7.3."""
    *_, distance = path.probabilities(backbone, inputs, lambda proba: [], details=True)
    return -distance
