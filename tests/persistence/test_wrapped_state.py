"""The wrapped classifier as a state: what comes back, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.frozen import FrozenEstimator
from timm.models import VisionTransformer

from sklearn_diffuq import FTTransformerClassifier, TransformerClassifier
from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._persistence.wrapped_state import load_wrapped, upgrade_wrapped, wrapped_state
from sklearn_diffuq._state import State

FORMAT_1 = sorted(path for path in (Path(__file__).parent / "format_1").iterdir() if path.is_dir())
IMAGES = np.random.default_rng(0).normal(size=(40, 1, 8, 8)).astype(np.float32)
FIVE = np.arange(40) % 5


def make_vit(depth=3, **options):
    torch.manual_seed(0)
    options = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 8} | options
    vit = VisionTransformer(depth=depth, num_heads=2, num_classes=5, **options).eval()
    torch.nn.init.normal_(vit.head.weight)  # timm starts the head at zero
    return vit


def through_json(state):
    tensors = {name: value.clone() for name, value in state.tensors.items()}
    return State(json.loads(json.dumps(state.config)), tensors)


def assert_same(loaded, fitted, X):
    expected, found = fitted.encode(X), loaded.encode(X)
    rows = range(len(expected))
    for name, value in expected.batch(rows).items():
        torch.testing.assert_close(found.batch(rows)[name], value, rtol=0, atol=0, equal_nan=True)
    np.testing.assert_array_equal(loaded.predict_proba(X), fitted.predict_proba(X))
    assert loaded.backbone_.module is loaded.module_
    assert loaded.backbone_.blocks == list(loaded.module_.get_submodule(loaded.backbone_.path))
    assert loaded.history_ == fitted.history_


@pytest.fixture(scope="module")
def frame():
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"x": rng.normal(size=60), "c": rng.choice(["u", "v", "w"], size=60)})
    X.loc[::9, "c"] = None
    X.loc[::7, "x"] = np.nan
    return X


@pytest.fixture(scope="module")
def table_classifier(frame):
    clf = FTTransformerClassifier(max_epochs=1, width=8, device="cpu", random_state=0)
    return clf.fit(frame, np.arange(60) % 2)


def test_a_table_classifier_comes_back_whole(frame, table_classifier):
    state = through_json(wrapped_state(table_classifier))
    assert state.config["encoder"]["categories"] == [["u", "v", "w", None]]
    loaded = load_wrapped(state, table_classifier.classes_, None)
    assert_same(loaded, table_classifier, frame.replace({"c": {"v": "unseen"}}))
    assert loaded.get_params() == table_classifier.get_params()
    assert loaded.feature_names_in_.tolist() == ["x", "c"]
    assert (loaded.n_features_in_, loaded.n_iter_) == (2, 1)


def test_a_table_classifier_is_not_put_together_from_a_model(table_classifier):
    state = wrapped_state(table_classifier)
    with pytest.raises(ValueError, match="saved whole: expected estimator=None.*got VisionTrans"):
        load_wrapped(state, table_classifier.classes_, make_vit())


@pytest.mark.parametrize("given", ["model", "unfitted", "fitted", "frozen"])
def test_a_model_is_given_in_any_form_and_not_changed(given):
    # columns of absent classes and another order of the labels have to come back too
    kept = np.isin(FIVE, [0, 3])
    clf = TransformerClassifier(make_vit(), device="cpu").fit(IMAGES[kept], FIVE[kept])
    state = through_json(wrapped_state(clf))
    assert state.tensors == {}
    model = make_vit()
    unfitted = TransformerClassifier(model, device="cpu")
    fitted = TransformerClassifier(model, device="cpu").fit(IMAGES[kept], FIVE[kept])
    estimator = {
        "model": model,
        "unfitted": unfitted,
        "fitted": fitted,
        "frozen": FrozenEstimator(fitted),
    }[given]
    before = fitted.backbone_
    loaded = load_wrapped(state, clf.classes_, estimator)
    assert loaded.module_ is model
    assert_same(loaded, clf, IMAGES)
    assert loaded.backbone_ is not before is fitted.backbone_
    assert not hasattr(unfitted, "backbone_")


@pytest.mark.filterwarnings("ignore::sklearn_diffuq.exceptions.ReadoutWarning")
@pytest.mark.parametrize("finetune", [False, True])
def test_a_readout_and_trained_weights_come_back(finetune):
    model, y = make_vit(), np.where(FIVE < 2, "low", "high")
    clf = TransformerClassifier(
        model, device="cpu", finetune=finetune, max_epochs=1, lr=1e-2, random_state=0
    ).fit(IMAGES, y)
    state = through_json(wrapped_state(clf))
    assert {"backbone.readout.weight", "backbone.readout.bias"} <= state.tensors.keys()
    assert ("module.head.weight" in state.tensors) == finetune
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loaded = load_wrapped(state, clf.classes_, model)
    assert_same(loaded, clf, IMAGES)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    # the readout of a classifier that was fitted otherwise does not count
    other = TransformerClassifier(model, device="cpu").fit(IMAGES[:20], y[:20])
    loaded = load_wrapped(state, clf.classes_, other)
    np.testing.assert_array_equal(loaded.predict_proba(IMAGES), clf.predict_proba(IMAGES))


@pytest.mark.parametrize("finetune", [False, True])
def test_another_model_is_refused(finetune):
    clf = TransformerClassifier(
        make_vit(), device="cpu", finetune=finetune, max_epochs=1, random_state=0
    ).fit(IMAGES, FIVE)
    state = through_json(wrapped_state(clf))
    for other, message in (
        (make_vit(embed_dim=16), "expected VisionTransformer.*got VisionTransformer"),
        (make_vit(depth=2), "expected .*3 blocks.*got .*2 blocks"),
        (torch.nn.Linear(2, 2), "expected .*3 blocks.*got Linear with 0 blocks"),
    ):
        with pytest.raises(ValueError, match="is not the one that was saved: " + message):
            load_wrapped(state, clf.classes_, other)


def test_what_is_missing_is_said():
    def to_pixels(image):
        return image

    clf = TransformerClassifier(make_vit(), preprocessor=to_pixels, device="cpu").fit(IMAGES, FIVE)
    state = through_json(wrapped_state(clf))
    with pytest.raises(ValueError, match="model was not saved: .* 3 blocks.*got None"):
        load_wrapped(state, clf.classes_, None)
    with pytest.raises(ValueError, match="preprocessor was not saved: .* a function.*got VisionT"):
        load_wrapped(state, clf.classes_, make_vit())
    lost = TransformerClassifier("/no/such", preprocessor=to_pixels)
    with pytest.raises(ValueError, match="cannot be loaded from '/no/such': expected a VisionT"):
        load_wrapped(state, clf.classes_, lost)
    given = TransformerClassifier(make_vit(), preprocessor=to_pixels)
    assert_same(load_wrapped(state, clf.classes_, given), clf, IMAGES)
    with pytest.raises(ValueError, match=r"expected the classes \[0, 1\], got \[0, 1, 2, 3, 4\]"):
        load_wrapped(state, np.array([0, 1]), clf)


class OwnClassifier(FTTransformerClassifier):
    """A subclass, which may hold more than the package saves."""


def test_a_subclass_has_to_be_given():
    X, y = np.random.default_rng(0).normal(size=(20, 2)), np.arange(20) % 2
    clf = OwnClassifier(max_epochs=1, width=8, device="cpu").fit(X, y)
    state = through_json(wrapped_state(clf))
    with pytest.raises(ValueError, match="estimator=, a fitted OwnClassifier of FTTrans.*got None"):
        load_wrapped(state, clf.classes_, None)
    loaded = load_wrapped(state, clf.classes_, clf)
    assert type(loaded) is OwnClassifier
    assert_same(loaded, clf, X)


def test_only_a_linear_readout_is_saved():
    backbone = Backbone(make_vit(), readout=torch.nn.Sequential(torch.nn.Linear(8, 2)))
    backbone.probe({"x": torch.as_tensor(IMAGES[:2])})
    with pytest.raises(ValueError, match="readout of type Sequential"):
        backbone.to_state()


@pytest.mark.parametrize("directory", FORMAT_1, ids=lambda path: path.name)
def test_format_1_is_upgraded(directory):
    config = json.loads((directory / "config.json").read_text())
    tensors = load_file(directory / "tensors.safetensors")
    saved = State({"wrapped": config["wrapped"]}, tensors).part("wrapped")
    classes = np.array(config["classes"]["values"])
    loaded = load_wrapped(upgrade_wrapped(saved), classes, None)
    X = np.random.default_rng(0).normal(size=(7, 2))
    logits = loaded.decision_function(X)
    assert logits.shape == (7, len(classes))
    with torch.no_grad():
        batch = loaded.encode(X).batch(range(7))
        np.testing.assert_allclose(loaded.module_(**batch), logits, rtol=1e-5, atol=1e-6)
    again, upgraded = wrapped_state(loaded), through_json(upgrade_wrapped(saved)).config
    config = through_json(again).config
    assert config["params"].pop("class_weight") is None  # came later
    for name in ("seed", "n_numeric", "cardinalities"):  # known from the rest
        del upgraded["encoder"][name]
    assert config == upgraded
    assert again.tensors.keys() == upgrade_wrapped(saved).tensors.keys()


def test_a_readout_of_format_1_is_upgraded():
    y = np.where(FIVE < 2, "low", "high")
    with pytest.warns(UserWarning, match="does not fit"):
        clf = TransformerClassifier(make_vit(), device="cpu").fit(IMAGES, y)
    new = wrapped_state(clf)
    backbone = new.config["backbone"]
    config = {k: v for k, v in new.config.items() if k != "backbone"} | backbone | {"n_tokens": 5}
    old = State(config, {k.removeprefix("backbone."): v for k, v in new.tensors.items()})
    assert "readout.weight" in old.tensors
    assert_same(load_wrapped(upgrade_wrapped(old), clf.classes_, make_vit()), clf, IMAGES)
