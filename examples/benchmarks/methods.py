"""The methods compared by the benchmarks. To add one, add a line to `registry`.

A method is fitted by a function of the frozen wrapped classifier, the training samples and the
calibration samples, each a pair (X, y) with labels 0 to K - 1, and a seed.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from inspect import signature

from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV

from sklearn_diffuq import DiffusionCalibratedClassifier


@dataclass(frozen=True)
class Method:
    """How to fit a method, and which parameters to set on the fitted classifier before predicting.

    Consecutive methods with the same `fit` share one fit.
    """

    fit: Callable
    then: dict = field(default_factory=dict)


def uncalibrated(frozen, train, calibration, seed):
    """Return the wrapped classifier unchanged."""
    return frozen


def scikit_learn(frozen, train, calibration, seed, *, method):
    """Fit a calibration method of scikit-learn on the calibration samples."""
    return CalibratedClassifierCV(frozen, method=method).fit(*calibration)


def venn_abers(frozen, train, calibration, seed):
    """Fit MAPIE's one-versus-one Venn-ABERS calibration on the calibration samples."""
    from mapie.calibration import VennAbersCalibrator

    # MAPIE divides zero by zero on purpose, at the ends of its steps.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="mapie")
    return VennAbersCalibrator(frozen, cv="prefit").fit(*calibration)


def diffusion(frozen, train, calibration, seed, **options):
    """Fit `DiffusionCalibratedClassifier`."""
    classifier = DiffusionCalibratedClassifier(frozen, random_state=seed, **options)
    return classifier.fit(*train, X_calibration=calibration[0], y_calibration=calibration[1])


def baseline(frozen, train, calibration, seed, *, name, refit=False, **options):
    """Fit a classifier of `sklearn_diffuq.baselines`, which may need an optional package.

    With `refit`, it gets an unfitted wrapped classifier and trains it itself.
    """
    cls = getattr(import_module("sklearn_diffuq.baselines"), name)
    accepted = signature(cls).parameters  # only those that train have epochs
    options = {option: value for option, value in options.items() if option in accepted}
    wrapped = clone(frozen.estimator) if refit else frozen
    classifier = cls(wrapped, random_state=seed, **options)
    return classifier.fit(*train, X_calibration=calibration[0], y_calibration=calibration[1])


def trained_longer(frozen, train, calibration, seed, *, max_epochs):
    """Train a copy of the wrapped model for more epochs on its training samples."""
    longer = clone(frozen.estimator).set_params(
        finetune=True, max_epochs=max_epochs, random_state=seed
    )
    return longer.fit(*train)


BASELINES = {
    "label smoothing": "LabelSmoothingClassifier",
    "MC dropout": "MCDropoutClassifier",
    "deep ensemble": "DeepEnsembleClassifier",
    "last-layer Laplace": "LaplaceClassifier",
    "variational last layer": "VariationalLastLayerClassifier",
    "SNGP": "SNGPClassifier",
    "SGPA": "SGPAClassifier",
    "KEP-SVGP": "KEPSVGPClassifier",
}
CHEAP = (
    "backbone",
    "temperature",
    "sigmoid",
    "isotonic",
    "last-layer Laplace",
    "diffusion",
    "diffusion, mean",
    "diffusion, blockwise",
)


def backbone():
    """Return the wrapped model and its post-hoc calibrations."""
    calibrations = ("temperature", "sigmoid", "isotonic")
    return {
        "backbone": Method(uncalibrated),
        **{m: Method(partial(scikit_learn, method=m)) for m in calibrations},
    }


def diffusions(variants, **shared):
    """Return one method per variant, a dict name -> options of the constructor.

    Consecutive variants that differ only in `inference` and `n_samples` share one fit.
    """
    fits, methods = {}, {}
    for name, options in variants.items():
        options = {**shared, **options}
        then = {"inference": "moments"}
        then |= {name: options.pop(name) for name in ("inference", "n_samples") if name in options}
        fit = fits.setdefault(repr(sorted(options.items())), partial(diffusion, **options))
        methods[name] = Method(fit, then)
    return methods


def registry(unified=None, baselines=None, **shared):
    """Return name -> method.

    Parameters
    ----------
    unified : dict
        Options of the diffusions with the unified transition.
    baselines : dict of dict
        Name of a baseline -> its own options.
    **shared
        Options of every method that trains, such as `max_epochs`.
    """
    options = {**(unified or {}), **shared}
    own = {name: {**shared, **(baselines or {}).get(name, {})} for name in BASELINES}
    return {
        **backbone(),
        "Venn-ABERS": Method(venn_abers),
        **{m: Method(partial(baseline, name=cls, **own[m])) for m, cls in BASELINES.items()},
        **diffusions(
            {
                "diffusion": {},
                "diffusion, sampling": {"inference": "sampling"},
                "diffusion, mean": {"inference": "mean"},
            },
            **options,
        ),
        **diffusions({"diffusion, blockwise": {"transition": "blockwise"}}, **shared),
    }
