"""The transformer classifier inside of a fitted scikit-learn estimator."""

import copy
import pickle

import joblib
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV
from sklearn.pipeline import Pipeline

from sklearn_diffuq._wrapped.backbone_classifier import BackboneClassifier


class AfterSteps:
    """Encoder of a classifier that comes after fitted preprocessing steps.

    Parameters
    ----------
    steps : list of transformer
        Fitted.
    classifier : BackboneClassifier
        Fitted on what they return.
    """

    def __init__(self, steps, classifier):
        # the owner may fit the pipeline again, which changes its steps in place
        self.steps, self.classifier = copy.deepcopy(steps), classifier

    def transform(self, owner, X):
        """Return the samples as `EncodedInputs`."""
        for step in self.steps:
            X = step.transform(X)
        return self.classifier.encode(X)

    def described(self):
        """Return the class of each step, and a hash of what it has fitted or None."""
        return [[type(step).__name__, _hash(step)] for step in self.steps]

    def without_steps(self, owner):
        """Return a copy of the classifier that this encodes for, with the encoder of its own."""
        bare = copy.copy(owner)
        bare._encoder = self.classifier._encoder
        return bare


def open_fitted(estimator):
    """Return the fitted classifier in a fitted estimator, after the steps before it.

    It is looked for as the last step of a pipeline and in what a search, a calibration by
    scikit-learn, a choice of a threshold or of this package has fitted; what these do to the
    outputs is left out.

    Parameters
    ----------
    estimator : estimator
        Fitted.

    Returns
    -------
    classifier : BackboneClassifier or other estimator
        What is not known is returned as it is. The estimator is not changed.
    """
    steps, inner = [], estimator
    while not isinstance(inner, BackboneClassifier):
        if isinstance(inner, Pipeline):
            steps += [s for _, s in inner.steps[:-1] if hasattr(s, "transform")]
        inside = _inside(inner)
        if inside is None:
            return inner
        inner = inside
    if steps and hasattr(inner, "classes_"):
        return _after(steps, inner, estimator)
    return inner


def _hash(step):
    try:
        return joblib.hash(vars(step))
    except (pickle.PicklingError, TypeError, AttributeError):  # it holds a lambda, for example
        return None


def _inside(estimator):
    """Return the one classifier that an estimator hands its samples to, None if there is none."""
    if isinstance(estimator, Pipeline):
        return estimator.steps[-1][1]
    if isinstance(estimator, FrozenEstimator):
        return estimator.estimator
    if isinstance(estimator, CalibratedClassifierCV):
        parts = estimator.calibrated_classifiers_
        return parts[0].estimator if len(parts) == 1 else None
    if isinstance(estimator, (FixedThresholdClassifier, TunedThresholdClassifierCV)):
        return estimator.estimator_
    if hasattr(estimator, "transition_"):  # a DiffusionCalibratedClassifier
        return estimator.wrapped_
    return getattr(estimator, "best_estimator_", None)


def _after(steps, inner, estimator):
    """Return a copy of a classifier that runs the steps first."""
    classifier = copy.copy(inner)
    classifier._encoder = AfterSteps(steps, inner)
    for name in ("n_features_in_", "feature_names_in_"):
        vars(classifier).pop(name, None)
        value = getattr(estimator, name, None)
        if value is not None:
            setattr(classifier, name, copy.copy(value))
    return classifier
