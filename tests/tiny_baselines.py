"""Every rival with settings for a quick fit."""

from sklearn_diffuq import baselines

QUICK = {
    "MCDropoutClassifier": dict(n_samples=3),
}


def make(name, estimator, **parameters):
    """Return an unfitted rival with quick settings."""
    options = {"device": "cpu", "random_state": 0, **QUICK[name], **parameters}
    return getattr(baselines, name)(estimator, **options)
