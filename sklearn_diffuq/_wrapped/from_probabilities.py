"""What follows from `predict_proba` alone."""

import numpy as np
from sklearn.utils.validation import check_is_fitted


class FromProbabilities:
    """Mixin: the other predictions of a classifier that has `predict_proba`."""

    def predict_log_proba(self, X):
        """Return the logarithm of `predict_proba`.

        Parameters
        ----------
        X : as in `fit`, of length n
            Rows to predict.

        Returns
        -------
        log_proba : ndarray of shape (n, n_classes)
            Finite: a probability of zero counts as the smallest normal number.
        """
        return np.log(np.clip(self.predict_proba(X), np.finfo(np.float64).tiny, None))

    def decision_function(self, X):
        """Return calibrated logits.

        Parameters
        ----------
        X : as in `fit`, of length n
            Rows to predict.

        Returns
        -------
        scores : ndarray of shape (n,) for two classes, else (n, n_classes)
            Log-odds of the second class, or logarithms of the probabilities.
        """
        log_proba = np.log(np.clip(self.predict_proba(X), 1e-15, None))
        return log_proba[:, 1] - log_proba[:, 0] if log_proba.shape[1] == 2 else log_proba

    def predict(self, X):
        """Return the most probable class of each row.

        Parameters
        ----------
        X : as in `fit`, of length n
            Rows to predict.

        Returns
        -------
        y : ndarray of shape (n,)
            Entries of `classes_`.
        """
        check_is_fitted(self)
        return self.classes_[self.predict_proba(X).argmax(1)]
