"""FTTransformerClassifier: a transformer for tables, trained from scratch."""

from numbers import Integral, Real
from typing import ClassVar

import numpy as np
import torch
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_consistent_length

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._backbones.ft_transformer import FTTransformer
from sklearn_diffuq._inputs.dataset_rows import rows_and_labels
from sklearn_diffuq._inputs.encoded_inputs import LabelledInputs
from sklearn_diffuq._inputs.rows import check_labels, class_indices, stratified_split
from sklearn_diffuq._inputs.table_encoder import TableEncoder
from sklearn_diffuq._inputs.torch_state import at_most_threads
from sklearn_diffuq._training.classification import cross_entropy, fit_classifier
from sklearn_diffuq._training.loop_options import LoopOptions
from sklearn_diffuq._training.seeds import own_torch_seed
from sklearn_diffuq._wrapped.backbone_classifier import (
    CLASS_WEIGHT,
    BackboneClassifier,
    resolve_device,
)

MIN_VALIDATION_ROWS = 10


class FTTransformerClassifier(BackboneClassifier):
    """Transformer for tables (FT-Transformer), trained from scratch.

    Every feature becomes a token. Numbers are mapped to normal quantiles, and the model of the
    epoch with the lowest loss on held-out rows is kept. It is the model that
    :class:`DiffusionCalibratedClassifier` wraps by default.

    Parameters
    ----------
    n_blocks : int, default=3
        Number of transformer blocks.
    width : int, default=32
        Width of a token, a multiple of `n_heads`.
    n_heads : int, default=4
        Number of attention heads.
    dropout : float, default=0.2
        Probability that a block's attention does not see a feature, and that a hidden unit of a
        feed-forward layer is zero, in training.
    max_epochs : int, default=40
        Most passes over the training rows.
    batch_size : int or "auto", default="auto"
        Rows in a batch. "auto" takes a sixteenth of the rows, at least 16 and at most 256, so that
        small tables get enough steps.
    lr : float, default=1e-3
        Highest learning rate.
    weight_decay : float, default=0.1
        Decoupled weight decay.
    class_weight : dict, "balanced" or None, default=None
        Weights of the classes in training and in the choice of the epoch; see the
        :ref:`user guide <scikit_learn>`.
    validation_fraction : float, default=0.1
        Share of the rows held out to choose the epoch. Below 100 rows nothing is held out, and
        the last epoch is kept.
    patience : int, default=10
        Stop after this many epochs without a lower loss on the held-out rows.
    device : str or torch.device, default="auto"
        Where the model trains and predicts; "auto" is CUDA if available.
    random_state : int, RandomState instance or None, default=None
        Seed of initial weights, held-out rows, batches and dropout.
    verbose : int, default=0
        Above 0, print one line per epoch.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The sorted labels.
    n_features_in_ : int
        Number of features seen in `fit`.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, if `X` had names.
    module_ : torch.nn.Module
        The trained network.
    backbone_ : Backbone
        The network cut into embedding, blocks and readout.
    history_ : list of dict
        Loss, learning rate and seconds of each epoch.
    n_iter_ : int
        Number of epochs trained.

    See Also
    --------
    TransformerClassifier : Wraps a model that is already trained.

    Notes
    -----
    In data frames of pandas and polars, and in arrays of objects, columns of text, booleans or a
    categorical dtype are categories. Missing values are allowed there: a missing number adds a
    learned vector to its token, a missing category is a category of its own. Categories that were
    not seen in `fit` count as unknown. In arrays of numbers, NaN is an error, as everywhere in
    scikit-learn. Outside of the training range, probabilities become more equal the farther a row
    is.

    References
    ----------
    Y. Gorishniy et al., "Revisiting Deep Learning Models for Tabular Data", NeurIPS 2021,
    arXiv:2106.11959.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_diffuq import FTTransformerClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = FTTransformerClassifier(device="cpu", random_state=0).fit(X, y)
    >>> clf.score(X, y) > 0.9
    True
    """

    _parameter_constraints: ClassVar[dict] = {
        "n_blocks": [Interval(Integral, 1, None, closed="left")],
        "width": [Interval(Integral, 1, None, closed="left")],
        "n_heads": [Interval(Integral, 1, None, closed="left")],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "class_weight": CLASS_WEIGHT,
        "validation_fraction": [Interval(Real, 0, 0.5, closed="both")],
        "patience": [Interval(Integral, 1, None, closed="left")],
        "device": [str, torch.device],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        *,
        n_blocks=3,
        width=32,
        n_heads=4,
        dropout=0.2,
        max_epochs=40,
        batch_size="auto",
        lr=1e-3,
        weight_decay=0.1,
        class_weight=None,
        validation_fraction=0.1,
        patience=10,
        device="auto",
        random_state=None,
        verbose=0,
    ):
        self.n_blocks = n_blocks
        self.width = width
        self.n_heads = n_heads
        self.dropout = dropout
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.class_weight = class_weight
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit_encode(self, X, y, sample_weight=None):
        """Fit the classifier and return the training rows as the model reads them.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n, n_features)
            Training rows.
        y : array-like of shape (n,)
            Labels.
        sample_weight : array-like of shape (n,), default=None
            Weights of the rows; rows of weight zero are ignored.

        Returns
        -------
        training : LabelledInputs
            Rows of positive weight, as `encode` returns them, with class indices and weights.

        Raises
        ------
        ValueError
            As for `fit`.
        """
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        device = resolve_device(self.device)
        X, y = rows_and_labels(X, y)
        check_consistent_length(X, y)
        y, weight, kept = check_labels(y, sample_weight, type(self).__name__)
        encoder = TableEncoder()
        inputs = encoder.fit_transform(self, X, kept)
        classes = np.unique(y)
        module = self._new_module(encoder, len(classes), seed)
        training = LabelledInputs.of(inputs, class_indices(y, classes), weight)
        with at_most_threads(module.n_threads):
            weighted = self._class_weighted(training, classes)
            self.history_ = self._train(module, weighted, seed, device)
        self.classes_, self._encoder = classes, encoder
        self.module_, self.n_iter_ = module, len(self.history_)
        self.backbone_ = Backbone(module, blocks="blocks")
        self.backbone_.probe(inputs.batch(np.arange(min(len(inputs), 8)), device=device))
        return training

    def _new_module(self, encoder, n_classes, seed):
        with own_torch_seed(seed, "cpu"):
            return FTTransformer(
                encoder.n_numeric,
                encoder.cardinalities,
                n_classes,
                width=self.width,
                n_blocks=self.n_blocks,
                n_heads=self.n_heads,
                dropout=self.dropout,
            )

    def _train(self, module, training, seed, device):
        train, held = stratified_split(training.y.numpy(), self.validation_fraction, seed)
        if len(held) < MIN_VALIDATION_ROWS:
            train, held = np.arange(len(training)), held[:0]
        auto_size = int(np.clip(2 ** round(np.log2(len(train) / 16)), 16, 256))
        return fit_classifier(
            module,
            cross_entropy(lambda batch: module(**batch)),
            training.take(train),
            training.take(held),
            auto_size if self.batch_size == "auto" else self.batch_size,
            LoopOptions(
                max_epochs=self.max_epochs,
                lr=self.lr,
                weight_decay=self.weight_decay,
                patience=self.patience,
                device=device,
                seed=seed,
                verbose=self.verbose,
            ),
        )

    def to_state(self):
        """Return what the fitted classifier is restored from.

        Returns
        -------
        state : State
            The whole classifier, its weights included.
        """
        return super().to_state().with_parts(encoder=self._encoder.to_state())

    @classmethod
    def from_state(cls, state, classes):
        """Restore a fitted classifier.

        Parameters
        ----------
        state : State
            What `to_state` returned.
        classes : ndarray of shape (n_classes,)
            The labels.

        Returns
        -------
        classifier : FTTransformerClassifier
            Fitted.
        """
        clf = cls(**state.config["params"])
        clf._encoder = TableEncoder.from_state(state.part("encoder"))
        module = clf._new_module(clf._encoder, len(classes), seed=0)  # of weights to overwrite
        clf._restore(state, classes, module.eval().to(clf._available_device()))
        clf.n_iter_ = len(clf.history_)
        return clf

    def _owns_weights(self):
        return True
