import numpy as np
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.frozen import FrozenEstimator
from tiny_baselines import make

from sklearn_diffuq import FTTransformerClassifier


def test_an_unfitted_estimator_is_fitted_with_other_seeds():
    X, y = load_iris(return_X_y=True)
    table = FTTransformerClassifier(n_blocks=2, width=8, n_heads=2, max_epochs=4, random_state=5)
    clf = make("DeepEnsembleClassifier", table, n_members=3)
    clf.fit(X, y, X_calibration=X[::3], y_calibration=y[::3])
    expected = [
        clone(table).set_params(random_state=member.random_state).fit(X, y).predict_proba(X)
        for member, _ in clf._members
    ]
    np.testing.assert_allclose(clf.sample_proba(X), expected, atol=1e-12)
    np.testing.assert_allclose(clf.predict_proba(X), np.mean(expected, axis=0), atol=1e-12)
    assert len({member.random_state for member, _ in clf._members}) == 3
    assert clf.n_parameters_ == 3 * sum(p.numel() for p in clf.wrapped_.module_.parameters())


def test_a_trained_model_gets_new_last_layers(images):
    clf = make("DeepEnsembleClassifier", FrozenEstimator(images.trained), lr=1e-7, max_epochs=1)
    clf.fit(images.X, images.y)
    trained = images.trained.backbone_.module
    first, second = (backbone.module for _, backbone in clf._members)
    assert not torch.allclose(first.head.weight, second.head.weight, atol=1e-2)
    assert not torch.allclose(first.head.weight, trained.head.weight, atol=1e-2)
    torch.testing.assert_close(first.blocks[0].attn.qkv.weight, trained.blocks[0].attn.qkv.weight)
