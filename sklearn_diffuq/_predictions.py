"""What a fitted `DiffusionCalibratedClassifier` answers."""

import numpy as np
from sklearn.utils import Bunch, check_random_state
from sklearn.utils.validation import check_is_fitted

from sklearn_diffuq._calibration.predict import familiarity
from sklearn_diffuq._inputs.not_finite import counted_from
from sklearn_diffuq._inputs.rows import check_n_samples, row_blocks
from sklearn_diffuq._inputs.torch_state import own_torch_state
from sklearn_diffuq._path.embedding_shift import FirstLook
from sklearn_diffuq._path.time_grid import step_counts
from sklearn_diffuq._warnings import warn_user
from sklearn_diffuq._wrapped.from_probabilities import FromProbabilities
from sklearn_diffuq.exceptions import CalibrationWarning
from sklearn_diffuq.metrics import uncertainty_decomposition

_INFERENCE = ("sampling", "moments", "mean")
_FAR = (
    "X as a whole is far from the training data, and its probabilities may mean nothing. Was it "
    "preprocessed like the rows of fit, for example scaled alike? score_samples says how far each "
    "row is. This is said once per fit."
)


class PredictionMixin(FromProbabilities):
    """Predictions, uncertainty, and what they rest on at present."""

    @property
    def fitted_steps_(self):
        """Numbers of steps that were fitted."""
        return tuple(self._fitted.grids)

    @property
    def n_steps_(self):
        """Number of steps that predictions take: the first of `n_steps`."""
        n_steps = step_counts(self.n_steps, self.n_blocks_)[0]
        if n_steps not in self.fitted_steps_:
            raise ValueError(
                f"n_steps={n_steps} was not fitted: this classifier knows n_steps in "
                f"{sorted(self.fitted_steps_)}. Set one of these, or fit with n_steps="
                f"{(n_steps, *self.fitted_steps_)}."
            )
        return n_steps

    @property
    def n_parameters_(self):
        """How many numbers predictions need in place of the blocks."""
        return self._fitted.n_parameters(self.n_steps_, self._inference())

    @property
    def calibration_(self):
        """Calibration of each kind of inference under the present `n_steps`."""
        return self._fitted.calibrations[self.n_steps_]

    @property
    def temperature_(self):
        """Temperature of the logits under the present `inference`."""
        return self.calibration_[self._inference()].temperature

    @property
    def noise_scale_(self):
        """Noise scales under the present `inference`."""
        return self.calibration_[self._inference()].scales

    def _inference(self):
        """Return the parameter `inference`, which may have been set after `fit`."""
        if not isinstance(self.inference, str) or self.inference not in _INFERENCE:
            raise ValueError(f"inference must be one of {_INFERENCE}, got {self.inference!r}.")
        return self.inference

    def _probabilities(self, X, reduce, *, details=False):
        """Return what a function makes of the probabilities of the paths of `X`.

        See `CalibratedPath.probabilities`.
        """
        return self._answer(self._calibrated(self._inference()), X, reduce, details)

    def _calibrated(self, inference, n_samples=None, seed=None):
        """Return the path that predictions follow."""
        check_is_fitted(self)
        n_samples = check_n_samples(self.n_samples if n_samples is None else n_samples)
        mixed = self.precision == "bfloat16"
        return self._fitted.calibrated(self.n_steps_, inference, n_samples, seed, mixed=mixed)

    def _answer(self, path, X, reduce, details=False):
        """Follow a path from `X`, and say once if `X` as a whole is far from the training data."""
        fitted, backbone = self._fitted, self.wrapped_.backbone_
        unsaid = fitted.embedding is not None and "far" not in fitted.said
        look = FirstLook(fitted.embedding) if unsaid else None
        parts = self._by_blocks(
            X, lambda rows: path.probabilities(backbone, rows, reduce, details=details, look=look)
        )
        results = [np.concatenate(part) for part in zip(*parts, strict=True)]
        if look is not None and look.is_far:
            fitted.said.add("far")
            warn_user(_FAR, CalibrationWarning)
        return results

    def _by_blocks(self, X, function):
        """Return what a function makes of encoded rows, for each of the `row_blocks` of `X`."""
        results = []
        with own_torch_state():
            for start, block in row_blocks(X):
                with counted_from(start):
                    results.append(function(self.wrapped_.encode(block)))
        return results

    def predict_proba(self, X):
        """Return the calibrated class probabilities.

        Parameters
        ----------
        X : as in `fit`, of length n
            Rows to predict.

        Returns
        -------
        proba : ndarray of shape (n, n_classes), float64
            Rows sum to one; columns follow `classes_`.
        """
        (proba,) = self._probabilities(X, lambda proba: [proba.mean(0)])
        return proba

    def sample_proba(self, X, n_samples=None, random_state=None):
        """Return the class probabilities of single paths.

        Parameters
        ----------
        X : as in `fit`, of length n
            Rows to predict.
        n_samples : int, default=None
            Number of paths, at least 1; None takes the parameter `n_samples`.
        random_state : int, RandomState instance or None, default=None
            Seed of the paths; None takes that of the fit, as predictions do.

        Returns
        -------
        proba : ndarray of shape (n_samples, n, n_classes), float64
            The paths use the same noise for every row.
        """
        check_is_fitted(self)
        n_samples = check_n_samples(self.n_samples if n_samples is None else n_samples)
        seed = None
        if random_state is not None:
            seed = int(check_random_state(random_state).randint(2**31 - 1))

        def reduce(proba):
            proba = np.broadcast_to(proba, (n_samples, *proba.shape[1:]))
            return [proba.swapaxes(0, 1)]

        path = self._calibrated("sampling", n_samples, seed)
        (proba,) = self._answer(path, X, reduce)
        return proba.swapaxes(0, 1)

    def predict_uncertainty(self, X):
        """Return the uncertainty of each row, in total and in parts.

        Parameters
        ----------
        X : as in `fit`, of length n
            Rows to predict.

        Returns
        -------
        uncertainty : Bunch
            Of one pass over the rows: ``total``, the entropy of the predictive probabilities;
            ``aleatoric``, the mean entropy along single paths; ``epistemic``, their difference, the
            mutual information of label and path; each an ndarray of shape (n,) in nats.
            ``path_variance``, shape (n, n_steps): the variance that each step adds, averaged over
            tokens and channels, in squared units of the state. ``proba``, shape (n, n_classes), and
            ``score``, shape (n,), are what `predict_proba` and `score_samples` return; when
            sampling, the score is a mean over the paths. The split is relative to the fitted path:
            it says what this model is unsure of, not what is knowable.

        Warns
        -----
        CalibrationWarning
            Once per fit, if the epistemic part is zero for all rows, as there is one path only.
        """

        def reduce(proba):
            parts = uncertainty_decomposition(proba)
            return [proba.mean(0), parts.total, parts.aleatoric, parts.epistemic]

        names = ("proba", "total", "aleatoric", "epistemic", "path_variance", "score")
        results = Bunch(**dict(zip(names, self._probabilities(X, reduce, details=True))))
        results.score = -results.score
        if not results.epistemic.any():
            self._warn_of_one_path()
        return results

    def _warn_of_one_path(self):
        """Say once that the epistemic part is zero, if that is so for every row there may be."""
        if self.inference == "mean":
            reason = "inference='mean' follows one path. Set inference='moments' or 'sampling'"
        elif not self.calibration_[self.inference].has_noise:
            reason = (
                "no noise was fitted to the path: the held-out rows are too few for it, or it "
                "would lead to no gain in their log loss. Give more held-out rows, or use total "
                "and score_samples"
            )
        elif self.inference == "sampling" and self.n_samples == 1:
            reason = "n_samples=1 draws one path. Set n_samples to 2 or more"
        else:
            return
        if "epistemic" not in self._fitted.said:
            self._fitted.said.add("epistemic")
            message = f"The epistemic part is zero for all rows, since {reason}."
            warn_user(message, CalibrationWarning)

    def score_samples(self, X):
        """Return how much each row is like the training data; larger is more alike.

        Minus the standardised posterior variance of the Gaussian processes on the states, averaged
        over the states that the mean path arrives at: the distance that the temperature grows with.

        Parameters
        ----------
        X : as in `fit`, of length n
            Rows to predict.

        Returns
        -------
        scores : ndarray of shape (n,)
            In standard deviations over training rows.
        """
        path, backbone = self._calibrated("mean"), self.wrapped_.backbone_
        return np.concatenate(self._by_blocks(X, lambda rows: familiarity(path, backbone, rows)))
