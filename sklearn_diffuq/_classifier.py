"""The estimator. It orchestrates the stages; the tensor algebra lives in them."""

from numbers import Integral, Real
from typing import ClassVar

from sklearn.base import BaseEstimator, ClassifierMixin, _fit_context
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions

from sklearn_diffuq._fit_path import PathOptions, fit_path
from sklearn_diffuq._inputs.parts import parts_of
from sklearn_diffuq._inputs.rows import held_out_rows
from sklearn_diffuq._inputs.torch_state import own_torch_state
from sklearn_diffuq._path.time_grid import step_counts
from sklearn_diffuq._persistence.mixin import PersistenceMixin
from sklearn_diffuq._predictions import PredictionMixin
from sklearn_diffuq._training.loop_options import LoopOptions
from sklearn_diffuq._transition.training_options import TrainingOptions
from sklearn_diffuq._wrapped.estimator_parameter import EstimatorParameter
from sklearn_diffuq._wrapped.wrap import (
    WRAPPABLE,
    check_transition,
    choose_readout,
    copy_features,
    fit_wrapped,
    label,
)

WEIGHT_AVERAGE = 0.99  # decay of the moving average of the transition's weights


class DiffusionCalibratedClassifier(
    PredictionMixin, PersistenceMixin, EstimatorParameter, ClassifierMixin, BaseEstimator
):
    """Calibrated classifier from a pre-trained transformer, by a diffusion through its depth.

    The blocks of the wrapped transformer become a chain of Gaussian transitions from its embedding
    to its features. One transition network, started in closed form from the blocks and trained to
    follow them, stands for all steps; noise scales and a temperature are fitted on held-out rows.
    The probabilities are those of the label averaged over the paths.

    Read more in the :ref:`user guide <method>`.

    Parameters
    ----------
    estimator : estimator, torch.nn.Module or str, default=None
        The transformer classifier to wrap; it is never changed.

        - None trains a :class:`FTTransformerClassifier`, for tables.
        - A :class:`TransformerClassifier` or :class:`FTTransformerClassifier` is cloned and fitted
          on the training part.
        - A torch module (Hugging Face, timm, or any with a stack of equal blocks), a Hugging Face
          pipeline, or a path or name is taken as pre-trained; see :class:`TransformerClassifier`.
        - A :class:`~sklearn.frozen.FrozenEstimator` of a fitted one of these is used as it is, also
          of a fitted pipeline or search around one; the steps before it are applied.

    preprocessor : callable or str, default=None
        Tokenizer (or its path) for raw text, or transform for raw images; with a torch model only.
    transition : {"unified", "blockwise"}, default="unified"
        "unified" trains one transition network for all steps. "blockwise" keeps the wrapped
        model's blocks as the mean of the path: no training, ready in seconds, and with
        ``inference="mean"`` exactly the wrapped model with a temperature.
    n_steps : int or sequence of int, default=None
        Number of diffusion steps, at most the number of blocks; None takes one step per block.
        Fewer steps are a smaller and faster model. Several numbers share one fit: predictions use
        the first, and ``set_params(n_steps=...)`` changes to another without a new fit.
    rank : int or "auto", default="auto"
        Rank of what the unified transition learns per step. "auto" takes the smallest power of two
        whose untrained path keeps the held-out accuracy within 0.5 point (or one standard error)
        and the probabilities within 0.05 nats of the wrapped model's, and full rank where none
        does, or where training leaves the held-out log loss more than 0.01 above the wrapped
        model's; None is full rank.
    n_shared_blocks : int, default=1
        Number of shared blocks of the unified transition; consecutive steps share one.
    covariance : {"gp", "attention", "constant"}, default="gp"
        Where the noise points, and what it grows with.

        - "gp": along the increments of the state; noise and temperature grow with the posterior
          variance of a Gaussian process on the state, that is, away from the training data.
        - "attention": both come from the frozen attention, read as a Gaussian process.
        - "constant": along the increments; does not grow.

    noise_rank : int, default=8
        Number of noise directions per step that the tokens of a row share; with 0 every token has
        noise of its own only.
    inference : {"sampling", "moments", "mean"}, default="moments"
        How the path is followed. "moments" takes the first-order law of the logits, in one pass.
        "sampling" draws `n_samples` paths, on which `fit` tries its noise; set after `fit`, it has
        half that of "moments". "mean" has no noise, one pass, and one temperature for all rows.
    n_samples : int, default=8
        Number of paths. They come in antithetic pairs, so that few are enough.
    readout : {"auto", "frozen", "refit"}, default="auto"
        "auto" uses the wrapped model's head where it fits the labels, and otherwise warns and
        fits a logistic regression on its pooled features; "frozen" raises instead; "refit" always
        fits one.
    path_weight : float, default=0.3
        Weight of the divergence of the unified transition's steps from the wrapped model's.
    distillation_weight : float, default=1.0
        Weight of the divergence of its probabilities from the temperature-scaled wrapped model's.
    label_weight : float, default=0.5
        Weight of the negative log-likelihood of the labels.
    validation_fraction : float, default=0.2
        Share of the rows held out, per class, for model selection and calibration, if `fit` is not
        given `X_calibration`.
    max_epochs : int, default=10
        Epochs of training of the unified transition.
    batch_size : int, default=128
        Most rows per training step; data sets of less than 16 such batches get smaller ones.
    lr : float, default=2e-3
        Highest learning rate.
    callbacks : list of skorch callbacks, default=None
        Added to the training of the unified transition.
    device : str, default="auto"
        Device of a wrapped model that is not yet fitted; "auto" is CUDA when there is one.
    precision : {"auto", "float32", "bfloat16"}, default="auto"
        "bfloat16" runs the steps of the path in bfloat16, in training and predictions; all else is
        in float32, or in the wrapped model's own precision. "auto" does so in training on CUDA.
    compile : bool, default=False
        Whether to compile the steps that train together (stages A and B of the user guide).
    memory : str or object with the joblib.Memory interface, default=None
        Where to keep what a fit does for its wrapped estimator, for other fits on the same rows:
        a search over `n_steps` then trains it once per split. None keeps nothing.
    random_state : int, RandomState instance or None, default=None
        Seed of split, training and paths. Pass an int for reproducible results.
    verbose : int, default=0
        Above 0, print one line per epoch.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels, in the order of the probabilities.
    n_features_in_ : int
        Number of columns seen by `fit`; with tables only.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns; with data frames whose column names are all strings only.
    wrapped_ : estimator
        The fitted wrapped classifier.
    transition_ : object
        The mean of the path.
    covariance_ : object
        The covariance of the path.
    n_blocks_ : int
        Number of blocks of the wrapped model.
    n_steps_ : int
        Number of steps that predictions take.
    fitted_steps_ : tuple of int
        Numbers of steps that were fitted, any of which can be set as `n_steps`.
    rank_ : int or None
        Rank of the unified transition; None is full rank.
    n_parameters_ : int
        How many numbers predictions need in place of the blocks, those of distances included.
    n_block_parameters_ : int
        Number of parameters of the wrapped model's blocks.
    calibration_ : dict from {"mean", "moments", "sampling"} to Calibration
        Noise scales, temperature and held-out log loss of each kind of inference, so that
        `inference` and `n_samples` can be set after `fit`.
    temperature_ : float
        Temperature of the logits under the present `inference`, for rows as far from the training
        data as its own rows are on average.
    noise_scale_ : NoiseScales
        ``shared``, ``token``: standard deviation of the noise in units of the covariance's own
        (see the user guide);
        ``distance``: exponent with which it and the temperature grow away from the training data.
        Zero where the held-out rows give no support to them.
    history_ : list of dict
        One entry per epoch of training; ``rolled_out_r2`` has one value per step.

    See Also
    --------
    TransformerClassifier : The wrapped model itself as a scikit-learn classifier.
    FTTransformerClassifier : A transformer for tables.
    sklearn.calibration.CalibratedClassifierCV : Calibration of the outputs alone.

    Notes
    -----
    All rows share one draw of the path noise, so that a row's probabilities do not depend on other
    rows or their order. The Monte Carlo errors of rows are therefore dependent.

    References
    ----------
    .. [1] "Diffusion-Inspired Reconfiguration of Transformers for Uncertainty Calibration",
       :arxiv:`2602.08920`.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.model_selection import train_test_split
    >>> from sklearn_diffuq import DiffusionCalibratedClassifier
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
    >>> clf = DiffusionCalibratedClassifier(random_state=0).fit(X_train, y_train)
    >>> clf.predict_proba(X_test).shape
    (143, 2)
    >>> clf.score(X_test, y_test) > 0.9
    True
    """

    _parameter_constraints: ClassVar[dict] = {
        "estimator": WRAPPABLE,
        "preprocessor": [callable, HasMethods(["__call__"]), str, None],
        "transition": [StrOptions({"unified", "blockwise"})],
        "n_steps": [Interval(Integral, 1, None, closed="left"), tuple, list, None],
        "rank": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"}), None],
        "n_shared_blocks": [Interval(Integral, 1, None, closed="left")],
        "covariance": [StrOptions({"gp", "attention", "constant"})],
        "noise_rank": [Interval(Integral, 0, None, closed="left")],
        "inference": [StrOptions({"sampling", "moments", "mean"})],
        "n_samples": [Interval(Integral, 1, None, closed="left")],
        "readout": [StrOptions({"auto", "frozen", "refit"})],
        "path_weight": [Interval(Real, 0, None, closed="left")],
        "distillation_weight": [Interval(Real, 0, None, closed="left")],
        "label_weight": [Interval(Real, 0, None, closed="left")],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "callbacks": [list, None],
        "device": [str],
        "precision": [StrOptions({"auto", "float32", "bfloat16"})],
        "compile": ["boolean"],
        "memory": [str, HasMethods(["cache"]), None],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        estimator=None,
        *,
        preprocessor=None,
        transition="unified",
        n_steps=None,
        rank="auto",
        n_shared_blocks=1,
        covariance="gp",
        noise_rank=8,
        inference="moments",
        n_samples=8,
        readout="auto",
        path_weight=0.3,
        distillation_weight=1.0,
        label_weight=0.5,
        validation_fraction=0.2,
        max_epochs=10,
        batch_size=128,
        lr=2e-3,
        callbacks=None,
        device="auto",
        precision="auto",
        compile=False,
        memory=None,
        random_state=None,
        verbose=0,
    ):
        self.estimator = estimator
        self.preprocessor = preprocessor
        self.transition = transition
        self.n_steps = n_steps
        self.rank = rank
        self.n_shared_blocks = n_shared_blocks
        self.covariance = covariance
        self.noise_rank = noise_rank
        self.inference = inference
        self.n_samples = n_samples
        self.readout = readout
        self.path_weight = path_weight
        self.distillation_weight = distillation_weight
        self.label_weight = label_weight
        self.validation_fraction = validation_fraction
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.callbacks = callbacks
        self.device = device
        self.precision = precision
        self.compile = compile
        self.memory = memory
        self.random_state = random_state
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y=None, sample_weight=None, *,
            X_calibration=None, y_calibration=None, X_val=None, y_val=None):  # fmt: skip
        """Fit the path, its transition, and the calibration.

        Parameters
        ----------
        X : array-like, DataFrame, list of str, list of images, or data set, of length n
            Training rows, in any form the wrapped model takes, best those it was trained on.
        y : array-like of shape (n,), default=None
            Labels; None takes those of a data set.
        sample_weight : array-like of shape (n,), default=None
            Weights of the rows; rows of weight zero are dropped.
        X_calibration, y_calibration : as X and y, default=None
            Held-out rows for model selection and calibration, which nothing may have been trained
            on. None takes `validation_fraction` of `X`. They need the preprocessing of `X`.
        X_val, y_val : as X and y, default=None
            Other names of `X_calibration` and `y_calibration`, those of scikit-learn.

        Returns
        -------
        self : DiffusionCalibratedClassifier
            The fitted classifier.

        Raises
        ------
        ValueError
            If the data, the number of steps, or the labels do not fit the wrapped model.
        BackboneError
            If the model cannot be cut into embedding, blocks and readout, or is quantised and
            `transition` is "unified".

        Warns
        -----
        CalibrationWarning
            If held-out rows are few, contradict the order of the wrapped model's outputs, are
            training rows, or look like no training row; or if no gradients pass quantised layers.
        """
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        held_out = held_out_rows(X_calibration, y_calibration, X_val, y_val)
        part, held_part = parts_of((X, y, sample_weight), held_out, self.validation_fraction, seed)
        with own_torch_state():
            wrapped, fitted = self._fit_parts(part, held_part, seed)
        self._set_fitted(wrapped, fitted)
        return self

    def _fit_parts(self, part, held_part, seed):
        """Return the wrapped classifier and the fitted path."""
        with part.named():
            wrapped, training = fit_wrapped(self, *part.rows, seed, self.memory)
        check_transition(wrapped.backbone_, self.transition)
        with held_part.named():
            held_out = held_part.name(label(wrapped, *held_part.rows))
        training = part.name(training)
        wrapped = choose_readout(wrapped, self.readout, training)
        backbone = wrapped.backbone_
        with backbone.frozen():
            options = self._options(backbone, seed)
            return wrapped, fit_path(backbone, training, held_out, options, wrapped.classes_)

    def _options(self, backbone, seed):
        """Return the parameters as `fit_path` takes them."""
        loop = LoopOptions(
            max_epochs=self.max_epochs,
            lr=self.lr,
            average=WEIGHT_AVERAGE,
            callbacks=self.callbacks,
            device=str(backbone.device),
            seed=seed,
            verbose=self.verbose,
            compile=self.compile,
        )
        training = TrainingOptions(
            path_weight=self.path_weight,
            distillation_weight=self.distillation_weight,
            label_weight=self.label_weight,
            batch_size=self.batch_size,
            precision=self.precision,
            loop=loop,
        )
        return PathOptions(
            transition=self.transition,
            step_counts=step_counts(self.n_steps, backbone.n_blocks),
            rank=self.rank,
            n_shared_blocks=self.n_shared_blocks,
            covariance=self.covariance,
            noise_rank=self.noise_rank,
            training=training,
            seed=seed,
            draws=self.inference == "sampling",
        )

    def _set_fitted(self, wrapped, fitted):
        self.wrapped_, self._fitted = wrapped, fitted
        self.classes_ = wrapped.classes_
        copy_features(wrapped, self)
        self.transition_, self.covariance_ = fitted.path.mean, fitted.path.covariance
        self.n_blocks_ = wrapped.backbone_.n_blocks
        self.n_block_parameters_ = wrapped.backbone_.n_block_parameters
        self.rank_, self.history_ = fitted.path.mean.rank, fitted.history
