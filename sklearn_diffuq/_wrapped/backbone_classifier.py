"""What the two wrapped classifiers share: prediction, a refitted readout, and their state."""

import contextlib
import copy
from dataclasses import replace

import numpy as np
import torch
from scipy.special import log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, _fit_context
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.validation import check_is_fitted

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._backbones.label_columns import fit_linear_readout
from sklearn_diffuq._inputs.dataset_rows import rows_and_labels
from sklearn_diffuq._inputs.torch_state import own_torch_state
from sklearn_diffuq._state import State, column_names, plain
from sklearn_diffuq._wrapped.module_parameters import ModuleParameters

CLASS_WEIGHT = [dict, StrOptions({"balanced"}), None]  # what the parameter `class_weight` may be


def resolve_device(device):
    """Return the torch device of a parameter `device`, which may be "auto"."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={str(device)!r}, but no GPU was found. Use 'cpu' or 'auto'.")
    return device


class BackboneClassifier(ModuleParameters, ClassifierMixin, BaseEstimator):
    """Prediction from the logits of ``backbone_``.

    `fit` of a subclass sets ``classes_``, ``history_``, ``module_``, ``backbone_`` and the encoder
    ``_encoder``.
    """

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None, sample_weight=None):
        """Match the model with the labels, and train what has to be trained.

        Parameters
        ----------
        X : array-like, DataFrame, list of str, list of images, mapping or data set, of length n
            Rows of the kind that the model reads.
        y : array-like of shape (n,), default=None
            Labels; None takes those of a data set.
        sample_weight : array-like of shape (n,), default=None
            Weights of the rows; rows of weight zero are ignored.

        Returns
        -------
        self : BackboneClassifier
            The fitted classifier.

        Raises
        ------
        ValueError
            If the rows are not of the kind that the model reads or are not finite, or if there is
            one class only.
        BackboneError
            If the model cannot be cut into embedding, blocks and readout.

        Warns
        -----
        ColumnWarning
            If columns of a table are constant.
        """
        with own_torch_state():
            self.fit_encode(X, y, sample_weight)
        return self

    def _class_weighted(self, training, classes):
        """Return training rows with `class_weight` in their weights, to train the model on."""
        if self.class_weight is None:
            return training
        y, weight = training.y, training.weight
        of_class = compute_class_weight(
            self.class_weight, classes=classes, y=classes[y.numpy()], sample_weight=weight.numpy()
        )
        if not (np.isfinite(of_class).all() and (of_class >= 0).all()):
            raise ValueError(
                "class_weight must be finite and not negative, got "
                f"{dict(zip(classes.tolist(), of_class.tolist()))}."
            )
        return replace(training, weight=weight * torch.from_numpy(of_class)[y])

    def encode(self, X):
        """Check samples and turn them into model inputs.

        Parameters
        ----------
        X : as in `fit`, of length n
            Samples of the kind that the model reads.

        Returns
        -------
        inputs : EncodedInputs
            Token ids, pixels, numbers and codes of categories, or the entries of a mapping.
        """
        check_is_fitted(self)
        return self._encoder.transform(self, rows_and_labels(X)[0])

    def _logits(self, X):
        check_is_fitted(self)
        with own_torch_state():
            return self.backbone_.map_rows(self.backbone_.logits, self.encode(X))

    def refit_readout(self, training):
        """Replace the readout by a logistic regression on the pooled features.

        Parameters
        ----------
        training : LabelledInputs
            What `fit_encode` returns; all of them are fitted on.
        """
        backbone, training = self.backbone_, self._class_weighted(training, self.classes_)

        def features(batch):
            h, context = backbone.embed(batch)
            return backbone.features(backbone.advance(h, context), context)

        values = backbone.map_rows(features, training.inputs)
        readout = fit_linear_readout(values, training, len(self.classes_))
        self.backbone_ = Backbone(
            backbone.module, blocks=backbone.path, readout=readout.to(backbone.device)
        )
        rows = np.repeat(np.arange(min(len(training), 2)), 2)[:2]
        self.backbone_.probe(training.inputs.batch(rows, device=backbone.device))

    def decision_function(self, X):
        """Return the logits.

        Parameters
        ----------
        X : as in `fit`, of length n
            Rows to predict.

        Returns
        -------
        scores : ndarray of shape (n,) for two classes, else (n, n_classes)
            Log-odds of the second class, or logits, in float64.
        """
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X):
        """Return class probabilities.

        Parameters
        ----------
        X : as in `fit`, of length n
            Rows to predict.

        Returns
        -------
        proba : ndarray of shape (n, n_classes)
            Float64 rows that sum to one; columns follow `classes_`.
        """
        proba = softmax(self._logits(X), axis=1)
        return proba / proba.sum(axis=1, keepdims=True)

    def predict_log_proba(self, X):
        """Return the logarithm of class probabilities.

        Parameters
        ----------
        X : as in `fit`, of length n
            Rows to predict.

        Returns
        -------
        log_proba : ndarray of shape (n, n_classes)
            Computed from the logits, so that small probabilities stay finite.
        """
        return log_softmax(self._logits(X), axis=1)

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
        winners = self._logits(X).argmax(axis=1)
        return self.classes_[winners]

    def to_state(self):
        """Return what the fitted classifier is restored from.

        Returns
        -------
        state : State
            Parameters, classes, cut and readout; the weights only if they are its own.
        """
        config = {
            "class": type(self).__name__,
            "params": {name: plain(value) for name, value in self.get_params(deep=False).items()},
            "n_features_in": getattr(self, "n_features_in_", None),
            "feature_names_in": column_names(self),
            "history": self.history_,
        }
        weights = self.module_.state_dict() if self._owns_weights() else {}
        state = State(config, {f"module.{name}": value for name, value in weights.items()})
        return state.with_parts(backbone=self.backbone_.to_state())

    def with_saved_backbone(self, state):
        """Return a copy of the fitted classifier with the weights, cut and readout of a state.

        Parameters
        ----------
        state : State
            What `to_state` returned.

        Returns
        -------
        classifier : BackboneClassifier
            Fitted; the original is not changed.

        Raises
        ------
        BackboneError
            If the model is not the one that was saved.
        """
        clf = copy.copy(self)
        clf._set_backbone(state, self.backbone_.module)
        return clf

    def _owns_weights(self):
        """Return whether `fit` has changed the weights, so that they have to be saved."""
        return False

    def _restore(self, state, classes, module):
        """Set the fitted attributes of a state, with a model whose weights may be replaced."""
        config = state.config
        self.classes_, self.history_ = classes, config["history"]
        if config["n_features_in"] is not None:
            self.n_features_in_ = config["n_features_in"]
        if config["feature_names_in"] is not None:
            self.feature_names_in_ = np.array(config["feature_names_in"], dtype=object)
        self._set_backbone(state, module)
        return self

    def _set_backbone(self, state, module):
        weights = state.part("module").tensors
        if weights:
            module = copy.deepcopy(module)
            with contextlib.suppress(RuntimeError):  # if they do not fit, the backbone says so
                module.load_state_dict(weights)
        self.module_, self.backbone_ = module, Backbone.from_state(state.part("backbone"), module)

    def _available_device(self):
        """Return the device of the parameters, or the CPU if that was a GPU and there is none."""
        return resolve_device(self.device if torch.cuda.is_available() else "cpu")

    def __getstate__(self):
        """Return the state with every model on the CPU, so that it loads without a GPU."""
        state = super().__getstate__()
        models = {k: v for k, v in state.items() if k in ("model", "module_", "backbone_")}
        if any(p.is_cuda for m in _modules_of(models) for p in m.parameters()):
            models = copy.deepcopy(models)  # together: what is shared stays shared
            for module in _modules_of(models):
                module.cpu()
            state |= models
        return state

    def __setstate__(self, state):
        """Restore the state; move the model to the GPU where there is one and it is asked for."""
        super().__setstate__(state)
        if hasattr(self, "backbone_") and torch.cuda.is_available():
            for module in _modules_of({"backbone_": self.backbone_}):
                module.to(self._available_device())


def _modules_of(models):
    """Return the torch modules among the values, and in backbones."""
    found = [m for m in models.values() if isinstance(m, torch.nn.Module)]
    backbone = models.get("backbone_")
    if backbone is not None:
        found += [m for m in (backbone.module, backbone.custom_readout) if m is not None]
    return found
