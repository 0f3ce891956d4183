"""The methods that the benchmarks compare. To add one, add a line to `registry`.

A method is fitted by a function of the frozen wrapped classifier, the training rows and the
calibration rows, each a pair (X, y) with labels 0 to K - 1, and a seed.
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
    """How to fit a method, and what to set on the fitted classifier before it predicts.

    Neighbours in the registry with the same `fit` share one fit.
    """

    fit: Callable
    then: dict = field(default_factory=dict)


def as_is(frozen, train, calibration, seed):
    """Return the wrapped classifier."""
    return frozen


def scikit_learn(frozen, train, calibration, seed, *, method):
    """Fit a calibration of scikit-learn on the calibration rows."""
    return CalibratedClassifierCV(frozen, method=method).fit(*calibration)


def venn_abers(frozen, train, calibration, seed):
    """Fit the Venn-ABERS calibration of MAPIE on the calibration rows, one class against one."""
    from mapie.calibration import VennAbersCalibrator

    # It divides zero by zero on purpose, at the ends of its steps.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="mapie")
    return VennAbersCalibrator(frozen, cv="prefit").fit(*calibration)


def diffusion(frozen, train, calibration, seed, **options):
    """Fit the classifier of this package."""
    classifier = DiffusionCalibratedClassifier(frozen, random_state=seed, **options)
    return classifier.fit(*train, X_calibration=calibration[0], y_calibration=calibration[1])


def rival(frozen, train, calibration, seed, *, name, refit=False, **options):
    """Fit a classifier of `sklearn_diffuq.baselines`, which may need an optional package.

    With `refit` it gets the wrapped classifier unfitted, to train it in its own way.
    """
    cls = getattr(import_module("sklearn_diffuq.baselines"), name)
    accepted = signature(cls).parameters  # those that train nothing have no epochs
    options = {option: value for option, value in options.items() if option in accepted}
    wrapped = clone(frozen.estimator) if refit else frozen
    classifier = cls(wrapped, random_state=seed, **options)
    return classifier.fit(*train, X_calibration=calibration[0], y_calibration=calibration[1])


def trained_longer(frozen, train, calibration, seed, *, max_epochs):
    """Train a copy of the wrapped model for more epochs on its training rows."""
    longer = clone(frozen.estimator).set_params(
        finetune=True, max_epochs=max_epochs, random_state=seed
    )
    return longer.fit(*train)


RIVALS = {
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
    """Return the methods that leave the wrapped model as it is."""
    calibrations = ("temperature", "sigmoid", "isotonic")
    return {
        "backbone": Method(as_is),
        **{m: Method(partial(scikit_learn, method=m)) for m in calibrations},
    }


def diffusions(variants, **shared):
    """Return one method per variant, a dict name -> options of the constructor.

    Neighbours that differ in `inference` and `n_samples` alone share one fit.
    """
    fits, methods = {}, {}
    for name, options in variants.items():
        options = {**shared, **options}
        then = {"inference": "moments"}
        then |= {name: options.pop(name) for name in ("inference", "n_samples") if name in options}
        fit = fits.setdefault(repr(sorted(options.items())), partial(diffusion, **options))
        methods[name] = Method(fit, then)
    return methods


def registry(unified=None, rivals=None, **shared):
    """Return name -> method.

    Parameters
    ----------
    unified : dict
        Options of the diffusions with the unified transition.
    rivals : dict of dict
        Name of a rival -> options of its own.
    **shared
        Options of everything that is trained, such as `max_epochs`.
    """
    options = {**(unified or {}), **shared}
    own = {name: {**shared, **(rivals or {}).get(name, {})} for name in RIVALS}
    return {
        **backbone(),
        "Venn-ABERS": Method(venn_abers),
        **{m: Method(partial(rival, name=cls, **own[m])) for m, cls in RIVALS.items()},
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
