"""The wrapped classifier as a state, and back from what `load` is given.

A table model is stored whole. Of any other model only its readout, its name and a fingerprint are
stored, and the weights where fine-tuning has changed them: `load` finds it by its name, or is given
it.
"""

from typing import Any

import numpy as np
import torch
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline

from sklearn_diffuq._backbones.fingerprint import model_in_words
from sklearn_diffuq._backbones.loading import is_pipeline
from sklearn_diffuq._state import State
from sklearn_diffuq._warnings import warn_user
from sklearn_diffuq._wrapped.backbone_classifier import BackboneClassifier
from sklearn_diffuq._wrapped.ft_transformer_classifier import FTTransformerClassifier
from sklearn_diffuq._wrapped.open_fitted import AfterSteps, open_fitted
from sklearn_diffuq._wrapped.transformer_classifier import TransformerClassifier
from sklearn_diffuq.exceptions import BackboneError, CalibrationWarning


def wrapped_state(wrapped: BackboneClassifier) -> State:
    """Return the state of a fitted wrapped classifier.

    Parameters
    ----------
    wrapped : BackboneClassifier

    Returns
    -------
    state : State
        Without parameters if it can only be given to `load_wrapped`: a subclass of the package's
        classifiers may hold what is not known here, and fitted steps come before others.
    """
    encoder = wrapped._encoder
    if isinstance(encoder, AfterSteps):
        state: State = encoder.without_steps(wrapped).to_state()
        own = {"params": None, "steps": encoder.described()}
        return State(state.config | own, state.tensors)
    state = wrapped.to_state()
    if type(wrapped) in (FTTransformerClassifier, TransformerClassifier):
        return state
    return State(state.config | {"params": None}, state.tensors)


def load_wrapped(state: State, classes: np.ndarray, estimator: Any) -> BackboneClassifier:
    """Return the fitted wrapped classifier of a state.

    Parameters
    ----------
    state : State
        What `wrapped_state` or `upgrade_wrapped` returned.
    classes : ndarray of shape (n_classes,)
    estimator : estimator, torch.nn.Module, str or None
        As for `DiffusionCalibratedClassifier.load`; it is not changed.

    Returns
    -------
    wrapped : BackboneClassifier

    Raises
    ------
    ValueError
        If something is missing, or is not what was saved.
    """
    if isinstance(estimator, FrozenEstimator):
        estimator = open_fitted(estimator)
    if hasattr(estimator, "backbone_"):
        _check_classes(estimator, classes)
        _check_steps(estimator, state.config.get("steps", []))
        return estimator.with_saved_backbone(state)
    if state.config["params"] is None:
        raise ValueError(
            f"The wrapped classifier was not saved: expected estimator=, a fitted "
            f"{state.config['class']} of {_saved_model(state)}; got {_in_words(estimator)}."
        )
    if state.config["class"] == "FTTransformerClassifier":
        if estimator is not None:
            raise ValueError(
                "The wrapped FTTransformerClassifier was saved whole: expected estimator=None, or "
                f"the fitted FTTransformerClassifier; got {_in_words(estimator)}."
            )
        return FTTransformerClassifier.from_state(state, classes)
    return _load_transformer(state, classes, estimator)


def upgrade_wrapped(state: State) -> State:
    """Return a state of format version 1 in the present format.

    The cut, the readout and the description of the model were not a part ``backbone`` then.
    """
    moved = ("cut", "columns", "model")
    config = {k: v for k, v in state.config.items() if k not in (*moved, "n_tokens")}
    config["backbone"] = {name: state.config[name] for name in moved}
    tensors = {
        f"backbone.{name}" if name.startswith("readout.") else name: value
        for name, value in state.tensors.items()
    }
    return State(config, tensors)


def _load_transformer(state: State, classes: np.ndarray, estimator: Any) -> TransformerClassifier:
    model, preprocessor = estimator, None
    if isinstance(estimator, TransformerClassifier):
        model, preprocessor = estimator.model, estimator.preprocessor
    params = state.config["params"]
    source = params["model"] if model is None else model
    if not isinstance(source, (str, torch.nn.Module)) and not is_pipeline(source):
        raise ValueError(
            f"The wrapped model was not saved: expected estimator=, a {_saved_model(state)} "
            f"(the torch model, its name, or a TransformerClassifier with it); got "
            f"{_in_words(estimator)}."
        )
    has_own = preprocessor is not None or is_pipeline(source)
    if params["preprocessor"] is None and not has_own and state.config["preprocessor"]:
        raise ValueError(
            "The preprocessor was not saved: expected estimator=TransformerClassifier(model, "
            f"preprocessor=...) with a {state.config['preprocessor']}, or the fitted wrapped "
            f"classifier; got {_in_words(estimator)}."
        )
    try:
        return TransformerClassifier.from_state(
            state, classes, model=model, preprocessor=preprocessor
        )
    except BackboneError:
        raise
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The wrapped model cannot be loaded from {_in_words(source)}: expected a "
            f"{_saved_model(state)}; got: {error} Give the model, or its new name, as estimator=."
        ) from error


def _check_classes(estimator: BackboneClassifier, classes: np.ndarray) -> None:
    if not np.array_equal(estimator.classes_, classes):
        raise ValueError(
            "The wrapped classifier is not the one that was saved: expected the classes "
            f"{classes.tolist()}, got {estimator.classes_.tolist()}."
        )


def _check_steps(estimator: BackboneClassifier, saved: list[list[str]]) -> None:
    encoder = estimator._encoder
    given = encoder.described() if isinstance(encoder, AfterSteps) else []
    if [name for name, _ in given] != [name for name, _ in saved]:
        raise ValueError(
            "The wrapped classifier was saved after the fitted steps "
            f"{[name for name, _ in saved]}; got the steps {[name for name, _ in given]}. Give "
            "estimator=FrozenEstimator(the fitted pipeline)."
        )
    changed = [name for (name, new), (_, old) in zip(given, saved, strict=True) if new != old]
    if changed:
        warn_user(
            f"The steps {changed} of the pipeline are not those of the saved classifier, or come "
            "from another version of their package. If they were fitted again, probabilities are "
            "wrong: give the pipeline of `fit`.",
            CalibrationWarning,
        )


def _saved_model(state: State) -> str:
    return model_in_words(state.config["backbone"]["model"])


def _in_words(estimator: object) -> str:
    if estimator is None or isinstance(estimator, str):
        return repr(estimator)
    if isinstance(estimator, Pipeline):
        return "a bare Pipeline: FrozenEstimator(pipeline) is expected, with the fitted one"
    fitted = "" if isinstance(estimator, torch.nn.Module) else ", not fitted"
    return f"{type(estimator).__name__}{fitted}"
