"""Stage 6: what a fitted `DiffusionCalibratedClassifier` answers."""

import numpy as np
from sklearn.utils import Bunch
from sklearn.utils.validation import check_is_fitted

from sklearn_diffuq._path.time_grid import step_counts
from sklearn_diffuq._propagation.predict import familiarity, path_predictions
from sklearn_diffuq._wrapped.from_probabilities import FromProbabilities
from sklearn_diffuq.metrics import uncertainty_decomposition


class PredictionMixin(FromProbabilities):
    """Predictions, uncertainty, and what they rest on at present."""

    @property
    def n_steps_(self):
        """Number of steps that predictions take: the first of `n_steps`."""
        n_steps = step_counts(self.n_steps, self.n_blocks_)[0]
        if n_steps not in self._grids:
            raise ValueError(
                f"n_steps={n_steps} was not fitted: this classifier knows n_steps in "
                f"{sorted(self._grids)}. Set one of these, or fit with n_steps="
                f"{(n_steps, *self._grids)}."
            )
        return n_steps

    @property
    def n_parameters_(self):
        """Number of parameters of the transition, which replaces the blocks."""
        transition = self.transition_.on(self._grids[self.n_steps_])
        return getattr(transition, "n_parameters", self.n_block_parameters_)

    @property
    def calibration_(self):
        """Calibration of each kind of inference under the present `n_steps`."""
        return self._calibrations[self.n_steps_]

    @property
    def temperature_(self):
        """Temperature of the logits under the present `inference`."""
        return self.calibration_[self.inference].temperature

    @property
    def noise_scale_(self):
        """Noise scales under the present `inference`."""
        return self.calibration_[self.inference].scales

    def _predictive(self, X, reduce, inference=None, n_samples=None, variance=False):
        """Return what `path_predictions` makes of the paths of `X`."""
        check_is_fitted(self)
        inference = inference or self.inference
        return path_predictions(
            self._path.on(self._grids[self.n_steps_]),
            self.wrapped_.backbone_,
            self.wrapped_.encode(X),
            self.calibration_[inference],
            reduce,
            inference=inference,
            n_samples=n_samples or self.n_samples,
            seed=self._seed,
            variance=variance,
        )

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
        (proba,) = self._predictive(X, lambda proba: [proba.mean(0)])
        return proba

    def sample_proba(self, X, n_samples=None):
        """Return the class probabilities of single paths.

        Parameters
        ----------
        X : as in `fit`, of length n
            Rows to predict.
        n_samples : int, default=None
            Number of paths; None takes the parameter `n_samples`.

        Returns
        -------
        proba : ndarray of shape (n_samples, n, n_classes), float64
            The paths use the same noise for every row.
        """
        check_is_fitted(self)
        n_samples = n_samples or self.n_samples

        def reduce(proba):
            proba = np.broadcast_to(proba, (n_samples, *proba.shape[1:]))
            return [proba.swapaxes(0, 1)]

        (proba,) = self._predictive(X, reduce, "sampling", n_samples)
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
            ``total``, the entropy of the predictive probabilities; ``aleatoric``, the mean
            entropy along single paths; ``epistemic``, their difference, the mutual information
            of label and path; each an ndarray of shape (n,) in nats. ``path_variance``, shape
            (n, n_steps): the variance that each step adds, averaged over tokens and channels, in
            squared units of the state. The split is relative to the fitted path: it says what
            this model is unsure of, not what is knowable.
        """

        def reduce(proba):
            parts = uncertainty_decomposition(proba)
            return [parts.total, parts.aleatoric, parts.epistemic]

        total, aleatoric, epistemic, variance = self._predictive(X, reduce, variance=True)
        return Bunch(total=total, aleatoric=aleatoric, epistemic=epistemic, path_variance=variance)

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
        check_is_fitted(self)
        path = self._path.on(self._grids[self.n_steps_])
        return familiarity(path, self.wrapped_.backbone_, self.wrapped_.encode(X))
