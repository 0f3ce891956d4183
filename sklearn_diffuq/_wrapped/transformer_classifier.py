"""TransformerClassifier: a pre-trained transformer as a scikit-learn classifier."""

import copy
from numbers import Integral, Real
from typing import ClassVar

import numpy as np
import torch
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval
from sklearn.utils.validation import _num_samples, check_consistent_length

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._backbones.calling import inner_model
from sklearn_diffuq._backbones.freezing import lock_of
from sklearn_diffuq._backbones.label_columns import match_columns
from sklearn_diffuq._backbones.loading import ModelInputs, load_preprocessor, read_given
from sklearn_diffuq._backbones.precision import make_trainable, needs_float32
from sklearn_diffuq._inputs.dataset_rows import rows_and_labels
from sklearn_diffuq._inputs.encoded_inputs import LabelledInputs
from sklearn_diffuq._inputs.not_finite import rows_blamed
from sklearn_diffuq._inputs.rows import check_labels, class_indices
from sklearn_diffuq._state import State
from sklearn_diffuq._training.classification import cross_entropy, fit_classifier
from sklearn_diffuq._training.loop_options import LoopOptions
from sklearn_diffuq._warnings import warn_user
from sklearn_diffuq._wrapped.backbone_classifier import (
    CLASS_WEIGHT,
    BackboneClassifier,
    resolve_device,
)
from sklearn_diffuq._wrapped.model_encoder import ModelEncoder
from sklearn_diffuq._wrapped.padding_side import needs_left_padding
from sklearn_diffuq.exceptions import ReadoutWarning


class TransformerClassifier(BackboneClassifier):
    """Pre-trained transformer as a scikit-learn classifier.

    `fit` matches the model's logits with the labels and trains nothing, unless the head does not
    fit or `finetune` asks for it. Predictions of a row depend on neither its batch nor its order.

    Parameters
    ----------
    model : torch.nn.Module, transformers.Pipeline or str
        A Hugging Face model or pipeline, a timm model or any module with a list of transformer
        blocks, also inside of ``DataParallel``, ``torch.compile`` or PEFT; or the directory or name
        of a Hugging Face model, the directory of a PEFT adapter, or the name of a timm model. The
        model given is never changed.
    preprocessor : tokenizer, callable, str or None, default=None
        For raw text, a Hugging Face tokenizer. For images, a Hugging Face image processor or a
        callable that maps one image to an array (channels, height, width). A str is the directory
        or name to load one from. A pipeline and a Hugging Face model given by name bring theirs.
    finetune : bool, default=False
        Whether to train a copy of the model, all of it, on the rows of `fit`.
    max_length : int, default=None
        Longest text in tokens; longer ones are cut. None means the most that tokenizer and model
        can read.
    blocks : str, default=None
        Dotted path of the list of blocks, such as "encoder.layer". None finds it.
    class_weight : dict, "balanced" or None, default=None
        Weights of the classes in fine-tuning, and where a readout is fitted; see the
        :ref:`user guide <scikit_learn>`.
    max_epochs : int, default=3
        Passes over the rows, if `finetune`.
    batch_size : int, default=32
        Rows in a training batch.
    lr : float, default=5e-5
        Highest learning rate of fine-tuning.
    weight_decay : float, default=0.01
        Decoupled weight decay of fine-tuning.
    device : str or torch.device, default="auto"
        Where the model runs; "auto" is CUDA if available. A model on another device is copied.
    random_state : int, RandomState instance or None, default=None
        Seed of batches and dropout, if `finetune`.
    verbose : int, default=0
        Above 0, print one line per epoch.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The sorted labels of `y`; logits of other classes are left out.
    n_features_in_ : int
        Number of features, if `X` was a table.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, if `X` was a table with names.
    module_ : torch.nn.Module
        The model that predicts: the one given, or a copy if it was trained or moved.
    backbone_ : Backbone
        The model cut into embedding, blocks and readout; its logits follow `classes_`.
    history_ : list of dict
        Loss, learning rate and seconds of each epoch; empty if nothing was trained.

    Warns
    -----
    ReadoutWarning
        If the head does not fit the labels, or there is none: a logistic regression on the
        layer-normalised token mean takes its place. Also if it fits but there is doubt: names that
        differ in case, labels 0, 1, .. of a head that has more outputs, or text that sorts "10"
        before "2" for a model without names.

    See Also
    --------
    FTTransformerClassifier : A transformer for tables, trained from scratch.

    Notes
    -----
    A label gets the logit of its name in ``model.config.id2label``, exactly or else without regard
    to case; else, labels that are integers from 0 to the number of logits minus 1 get the logit of
    their number; else, if the model names no classes and there are as many labels as logits, they
    are taken in sorted order. Numbers match names as integers, also where they are floats.

    Pixels of uint8 arrays are divided by 255; other arrays are taken as they are. Give them scaled
    as the model was trained, or a `preprocessor`.

    Examples
    --------
    >>> import torch
    >>> from sklearn.datasets import load_digits
    >>> from timm.models import VisionTransformer
    >>> from sklearn_diffuq import TransformerClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> vit = VisionTransformer(
    ...     img_size=8, patch_size=2, in_chans=1, num_classes=10,
    ...     embed_dim=16, depth=2, num_heads=2)
    >>> clf = TransformerClassifier(vit, finetune=True, lr=1e-3, device="cpu", random_state=0)
    >>> images = X.reshape(-1, 8, 8) / 16
    >>> clf.fit(images[:600], y[:600]).predict_proba(images[600:]).shape
    (1197, 10)
    """

    _parameter_constraints: ClassVar[dict] = {
        "model": [torch.nn.Module, str, HasMethods(["preprocess", "postprocess"])],
        "preprocessor": [callable, str, None],
        "finetune": ["boolean"],
        "max_length": [Interval(Integral, 1, None, closed="left"), None],
        "blocks": [str, None],
        "class_weight": CLASS_WEIGHT,
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "device": [str, torch.device],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        model,
        *,
        preprocessor=None,
        finetune=False,
        max_length=None,
        blocks=None,
        class_weight=None,
        max_epochs=3,
        batch_size=32,
        lr=5e-5,
        weight_decay=0.01,
        device="auto",
        random_state=None,
        verbose=0,
    ):
        self.model = model
        self.preprocessor = preprocessor
        self.finetune = finetune
        self.max_length = max_length
        self.blocks = blocks
        self.class_weight = class_weight
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self):
        """Say what `X` may be, which depends on the model."""
        tags = super().__sklearn_tags__()
        is_module = isinstance(self.model, torch.nn.Module)
        kind = ModelInputs.of(self.model).kind if is_module else "unknown"
        tags.input_tags.two_d_array = kind == "any"
        tags.input_tags.string = kind in ("text", "unknown")
        tags.input_tags.three_d_array = kind in ("images", "unknown")
        tags.input_tags.dict = True
        return tags

    def fit_encode(self, X, y, sample_weight=None):
        """Fit the classifier and return the training rows as the model reads them.

        Parameters
        ----------
        X : as in `fit`, of length n
            Rows of the kind that the model reads.
        y : array-like of shape (n,)
            Labels.
        sample_weight : array-like of shape (n,), default=None
            Weights of the rows; rows of weight zero are ignored.

        Returns
        -------
        training : LabelledInputs
            Rows of positive weight, as `encode` returns them, with class indices and weights.
        """
        X, y = rows_and_labels(X, y)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        n = None if y is None else _num_samples(y)
        y, weight, kept = check_labels(y, sample_weight, type(self).__name__)
        self._set_model(resolve_device(self.device))
        inputs = self._encoder.fit_transform(self, X)
        check_consistent_length(np.empty(len(inputs)), np.empty(n))
        self.classes_ = np.unique(y)
        inputs = self._cut(inputs.take(kept))
        training = LabelledInputs.of(inputs, class_indices(y, self.classes_), weight)
        self._align(training)
        self.history_ = self._train(training, seed) if self.finetune else []
        return training

    def _set_model(self, device):
        """Load the model and its encoder; copy a given model that will be trained or moved."""
        model, own = read_given(self.model)
        preprocessor = own if self.preprocessor is None else self.preprocessor
        if isinstance(preprocessor, str):
            is_image = ModelInputs.of(model).kind == "images"
            preprocessor = load_preprocessor(preprocessor, is_image)
        self._encoder = ModelEncoder(model, preprocessor, self.max_length)
        pad_id = self._encoder.reads.pad_id
        name = type(inner_model(model)).__name__
        if pad_id is None and name.endswith("SequenceClassification"):
            raise ValueError(
                f"{name} has no `config.pad_token_id`, so it cannot find the last "
                "token of a text. Set `model.config.pad_token_id = tokenizer.pad_token_id`, or to "
                "the end-of-text token if the tokenizer has no padding token."
            )
        on_device = next(model.parameters()).device == device
        # what was made in inference mode can have no gradients, its copy can
        is_fixed = any(p.is_inference() for p in (*model.parameters(), *model.buffers()))
        converts = needs_float32(model, self.finetune)
        is_own = not (self.finetune or converts or is_fixed) and on_device
        if not isinstance(self.model, str) and not is_own:
            with lock_of(model):  # another thread may just have it in pieces
                model = copy.deepcopy(model)
        self.module_ = (model.float() if converts else model).to(device)

    def to_state(self):
        """Return what the fitted classifier is restored from.

        A model or a preprocessor that was not given by name has to be given to `from_state`.

        Returns
        -------
        state : State
            With the weights of the model only if they were trained.
        """
        given = self.preprocessor
        is_object = given is not None and not isinstance(given, str)
        state = super().to_state()
        name = type(given).__name__ if is_object else None
        own = {
            "preprocessor": name,
            "input_order": self._encoder.order,
            "pad_left": self._encoder.pad_left,
        }
        return State(state.config | own, state.tensors)

    @classmethod
    def from_state(cls, state, classes, *, model=None, preprocessor=None):
        """Restore a fitted classifier.

        Parameters
        ----------
        state : State
            What `to_state` returned.
        classes : ndarray of shape (n_classes,)
            The labels.
        model : torch.nn.Module or str, default=None
            Replaces the parameter `model`; required if that was not a str.
        preprocessor : tokenizer, callable or str, default=None
            Replaces the parameter `preprocessor`; required if that was an object.

        Returns
        -------
        classifier : TransformerClassifier
            Fitted.

        Raises
        ------
        BackboneError
            If the model is not the one that was saved.
        OSError, ValueError
            If it cannot be loaded by its name.
        """
        given = {"model": model, "preprocessor": preprocessor}
        given = {name: value for name, value in given.items() if value is not None}
        clf = cls(**state.config["params"] | given)
        clf._set_model(clf._available_device())
        clf._encoder.order = state.config.get("input_order")
        clf._encoder.pad_left = state.config.get("pad_left", False)
        return clf._restore(state, classes, clf.module_)

    def _owns_weights(self):
        return self.finetune

    def _cut(self, inputs):
        """Cut the model on a few samples, and return all with padding on the model's side."""
        backbone = Backbone(self.module_, blocks=self.blocks)
        self.backbone_ = backbone.probe(inputs.few(backbone.device))
        if needs_left_padding(backbone, inputs):
            self._encoder.pad_left, inputs = True, inputs.padded_left()
            backbone.probe(inputs.few(backbone.device))
        return inputs

    def _align(self, training):
        """Choose the logits of the classes, or fit a new readout where the head does not fit."""
        backbone, native, classes = self.backbone_, self.backbone_.n_outputs, self.classes_
        config = getattr(inner_model(self.module_), "config", None)
        names = getattr(config, "id2label", None)
        columns, doubt = match_columns(classes, native, names)
        if doubt is not None:
            warn_user(doubt, ReadoutWarning)
        if columns is not None:
            # no copy of the logits where all are kept in their order
            backbone.columns = None if columns == list(range(native)) else columns
            return
        head = "has no head" if native is None else f"has a head of {native} output(s)"
        known = "" if native is None or names is None else f" for {list(names.values())[:10]}"
        warn_user(
            f"{type(self.module_).__name__} {head}{known}, which does not fit the "
            f"{len(classes)} labels {classes.tolist()[:10]}: a logistic regression on its token "
            "mean is fitted instead. To use the head, give labels that match "
            "`model.config.id2label`, or integers from 0.",
            ReadoutWarning,
        )
        self.refit_readout(training)

    def _train(self, training, seed):
        training = self._class_weighted(training, self.classes_)
        trained = torch.nn.ModuleList([self.module_])
        if self.backbone_.custom_readout is not None:
            trained.append(self.backbone_.custom_readout)
        make_trainable(trained)
        options = LoopOptions(
            max_epochs=self.max_epochs,
            lr=self.lr,
            weight_decay=self.weight_decay,
            device=self.backbone_.device,
            seed=seed,
            verbose=self.verbose,
        )
        backbone, loss = self.backbone_, cross_entropy(self.backbone_.logits)

        def check():
            backbone.map_rows(backbone.logits, training.inputs)

        with rows_blamed(check, len(training)):
            return fit_classifier(trained, loss, training, None, self.batch_size, options)
