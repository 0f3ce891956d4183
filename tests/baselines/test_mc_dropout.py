import numpy as np
import pytest
import torch
from sklearn.frozen import FrozenEstimator
from tiny_backbones import text, vit
from tiny_baselines import make

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq.baselines._mc_dropout import Masks


@pytest.mark.parametrize("own", [True, False])
def test_a_sample_is_the_model_with_thinned_weights(own):
    """Gal & Ghahramani, eq. 4: a mask before a layer is W diag(z) / (1 - p)."""
    backbone, batch = vit()
    if own:
        backbone.blocks[1].mlp.drop2.p = 0.3
    masks = Masks(p=0.5, seed=4)
    masks.sample = 2
    with backbone.frozen(), masks.on(backbone):
        found = backbone.logits(batch)

    def mask(place, size):
        rng = np.random.default_rng([4, 2, place])
        return torch.tensor((rng.random(size) >= 0.5) * 2.0, dtype=torch.float32)

    if own:  # behind the layer: its rows
        layer = backbone.blocks[1].mlp.fc2
        thinned = mask(0, 16)
        layer.weight.data *= thinned[:, None]
        layer.bias.data *= thinned
    else:
        linear = [m for b in backbone.blocks for m in b.modules() if isinstance(m, torch.nn.Linear)]
        assert len(linear) == 16
        for place, layer in enumerate(linear):
            layer.weight.data *= mask(place, layer.in_features)
    with backbone.frozen():
        torch.testing.assert_close(found, backbone.logits(batch))


def test_without_dropout_it_is_the_wrapped_model(images):
    clf = make("MCDropoutClassifier", FrozenEstimator(images.trained), p=0.0, n_samples=2)
    clf.fit(images.X, images.y)
    expected = images.trained.predict_proba(images.X_test)
    np.testing.assert_allclose(clf.predict_proba(images.X_test), expected, atol=1e-12)


@pytest.mark.parametrize("n_samples", [0, "8", 2.0])
def test_a_number_of_samples_that_is_none_is_refused_after_the_fit(images, n_samples):
    clf = make("MCDropoutClassifier", FrozenEstimator(images.trained), n_samples=2)
    clf.fit(images.X, images.y).set_params(n_samples=n_samples)
    with pytest.raises(
        ValueError, match=f"n_samples must be an int of at least 1, got {n_samples!r}"
    ):
        clf.predict_proba(images.X_test)


def test_the_models_own_places_are_used():
    backbone, batch = text()
    masks = Masks(p=0.4, seed=0)
    assert isinstance(backbone, Backbone)
    with backbone.frozen(), masks.on(backbone):
        backbone.logits(batch)
    n_dropouts = sum(isinstance(m, torch.nn.Dropout) for m in backbone.module.modules())
    assert len(masks._drawn) < n_dropouts  # those on attention weights are not called
    assert {size for _, _, size in masks._drawn} == {16}


def test_masks_keep_the_mean():
    masks = Masks(p=0.25, seed=0)
    mask = masks.mask(0, torch.ones(3, 40_000))
    assert mask.unique().tolist() == pytest.approx([0, 4 / 3])
    assert mask.mean() == pytest.approx(1, abs=0.02)
