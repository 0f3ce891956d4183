"""Every baseline with settings for a quick fit."""

from sklearn_diffuq import baselines

QUICK = {
    "DeepEnsembleClassifier": dict(n_members=2, max_epochs=8, lr=5e-3),
    "KEPSVGPClassifier": dict(n_samples=2, rank=3, max_epochs=3, lr=3e-3),
    "LabelSmoothingClassifier": dict(max_epochs=3, lr=1e-3),
    "LaplaceClassifier": {},
    "MCDropoutClassifier": dict(n_samples=3),
    "SGPAClassifier": dict(n_samples=2, n_inducing=4, max_epochs=3, lr=3e-3),
    "SNGPClassifier": dict(n_components=64),
    "VariationalLastLayerClassifier": dict(n_samples=4, batch_size=32),
}


def make(name, estimator, **parameters):
    """Return an unfitted baseline with quick settings."""
    options = {"device": "cpu", "random_state": 0, **QUICK[name], **parameters}
    return getattr(baselines, name)(estimator, **options)
