"""A saved and loaded classifier is the same classifier; what cannot be the same is refused."""

import io
import json
import pickle
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from tiny_models import make_bert, make_images, make_texts, make_tokenizer, make_vit

from sklearn_diffuq import (
    DiffusionCalibratedClassifier,
    FTTransformerClassifier,
    TransformerClassifier,
)
from sklearn_diffuq._calibration.calibration import Calibration
from sklearn_diffuq._path.covariance import NoiseScales
from sklearn_diffuq._propagation.margin_table import MomentTable

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore::sklearn_diffuq.exceptions.CalibrationWarning"),
    pytest.mark.filterwarnings("ignore::sklearn_diffuq.exceptions.ReadoutWarning"),
]


def fit(estimator, X, y, **params):
    """Fit quickly, and make sure that every kind of inference has noise to save."""
    params = {
        "rank": 2, "max_epochs": 1, "n_samples": 4, "device": "cpu", "random_state": 0
    } | params  # fmt: skip
    clf = DiffusionCalibratedClassifier(estimator, **params).fit(X, y)
    k, generator = len(clf.classes_), torch.Generator().manual_seed(0)
    margins = -torch.rand(30, k - 1, generator=generator).double().sort(1).values
    table = MomentTable(margins, 0.3 * torch.eye(k).double().repeat(30, 1, 1))
    for calibrations in clf._fitted.calibrations.values():
        for i, name in enumerate(calibrations):
            scales = NoiseScales(0.3 + i, 0.1, 0.2)
            calibrations[name] = Calibration(
                scales, 1.3 + i, 0.5, table if name == "moments" else None
            )
    return clf


def quick_table(**params):
    return FTTransformerClassifier(max_epochs=1, width=8, n_blocks=2, device="cpu", **params)


def numbers(n=120, n_classes=3):
    return make_classification(
        n, 5, n_informative=4, n_redundant=0, n_classes=n_classes, random_state=0
    )


def frame(n=120):
    X, y = numbers(n)
    X = pd.DataFrame(X, columns=list("abcde"))
    X["colour"] = pd.Categorical(np.array(["red", "blue", "green"])[y])
    X["flag"] = X["a"] > 0
    X["size"] = pd.Series(np.array([1, 2, 4])[y], dtype=object)
    X["price"] = pd.Series(np.array([0.5, 1.5, 2.25])[y], dtype="category")
    X.loc[::7, "b"] = np.nan
    X.loc[::5, "colour"] = np.nan
    return X, y


def assert_same(a, b, X):
    """Assert equal bits of all that is predicted, under all kinds of inference."""
    assert a.get_params(deep=False).keys() == b.get_params(deep=False).keys()
    names = "rank_ n_blocks_ n_steps_ fitted_steps_ n_parameters_ n_block_parameters_"
    for name in names.split():
        assert getattr(a, name) == getattr(b, name)
    for name, calibration in a.calibration_.items():
        loaded = b.calibration_[name]
        assert replace(calibration, table=None) == replace(loaded, table=None)
        assert (calibration.table is None) == (loaded.table is None) == (name != "moments")
    assert json.dumps(a.history_, default=float) == json.dumps(b.history_)
    assert a.classes_.dtype == b.classes_.dtype
    np.testing.assert_array_equal(a.classes_, b.classes_)
    before = a.inference, b.inference
    for inference in ("sampling", "moments", "mean"):
        a.inference = b.inference = inference
        np.testing.assert_array_equal(a.predict_proba(X), b.predict_proba(X))
        np.testing.assert_array_equal(a.predict(X), b.predict(X))
        u, v = a.predict_uncertainty(X), b.predict_uncertainty(X)
        for name in u:
            np.testing.assert_array_equal(u[name], v[name])
    np.testing.assert_array_equal(
        a.sample_proba(X, 3, random_state=1), b.sample_proba(X, 3, random_state=1)
    )
    a.inference, b.inference = before
    np.testing.assert_array_equal(a.score_samples(X), b.score_samples(X))
    np.testing.assert_array_equal(a.wrapped_.predict_proba(X), b.wrapped_.predict_proba(X))


@pytest.fixture(scope="module")
def table_clf():
    return fit(quick_table(), *numbers())


# Round trips ------------------------------------------------------------------------------------


@pytest.mark.parametrize("params", [
    {},
    {"transition": "blockwise"},
    {"rank": None, "n_steps": 1},
    {"n_shared_blocks": 2},
    {"readout": "refit"},
], ids=str)  # fmt: skip
def test_a_table_needs_nothing_but_the_directory(tmp_path, params):
    X, y = numbers()
    clf = fit(quick_table(), X, y, **params)
    clf.save(tmp_path / "a" / "b")
    loaded = DiffusionCalibratedClassifier.load(str(tmp_path / "a" / "b"))
    assert_same(clf, loaded, X)
    assert loaded.n_features_in_ == 5
    assert not hasattr(loaded, "feature_names_in_")
    with pytest.raises(ValueError, match="expecting 5 features"):
        loaded.predict(X[:, :4])


def test_the_default_estimator(tmp_path):
    X, y = numbers(60, 2)
    clf = fit(None, X, y)
    clf.save(tmp_path)
    state = torch.get_rng_state()
    loaded = DiffusionCalibratedClassifier.load(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(clf, loaded, X)
    assert loaded.estimator is None


def test_a_data_frame_with_categories_and_missing_values(tmp_path):
    X, y = frame()
    clf = fit(quick_table(), X, y)
    clf.save(tmp_path)
    loaded = DiffusionCalibratedClassifier.load(tmp_path)
    unseen = X[:9].copy()
    unseen["colour"] = ["blue", *["purple"] * 8]
    unseen.loc[:4, "a"] = np.nan
    assert_same(clf, loaded, X)
    assert_same(clf, loaded, unseen)
    np.testing.assert_array_equal(loaded.feature_names_in_, X.columns)
    with pytest.raises(ValueError, match="feature names"):
        loaded.predict(X.rename(columns={"a": "z"}))


def test_a_data_frame_of_categories_only(tmp_path):
    X, y = frame()
    X = X[["colour", "flag"]]
    clf = fit(quick_table(), X, y)
    clf.save(tmp_path)
    assert_same(clf, DiffusionCalibratedClassifier.load(tmp_path), X)


@pytest.mark.parametrize("labels", [
    np.array(["no", "yes", "perhaps"]),
    np.array(["no", "yes", "perhaps"], dtype=object),
    np.array([-1, 5, 2], dtype=np.int32),
    np.array([0.0, 1.0, 2.0], dtype=np.float32),
    np.array([False, True, True]),
], ids=lambda labels: str(labels.dtype))  # fmt: skip
def test_labels_keep_their_kind(tmp_path, labels):
    X, y = numbers()
    clf = fit(quick_table(), X, labels[y], transition="blockwise")
    clf.save(tmp_path)
    loaded = DiffusionCalibratedClassifier.load(tmp_path)
    assert_same(clf, loaded, X)
    assert type(loaded.predict(X)[0]) is type(clf.predict(X)[0])


@pytest.fixture(scope="module")
def bert_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bert")
    make_bert().save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return str(directory)


@pytest.mark.parametrize("transition", ["unified", "blockwise"])
def test_a_text_model_given_by_its_directory(tmp_path, bert_directory, transition):
    texts, y = make_texts()
    clf = fit(bert_directory, texts, np.array(["no", "yes"])[y], transition=transition)
    clf.save(tmp_path)
    loaded = DiffusionCalibratedClassifier.load(tmp_path)
    assert_same(clf, loaded, texts)
    assert loaded.estimator == bert_directory
    assert not [k for k in load_file(tmp_path / "tensors.safetensors") if ".module." in k]


def test_labels_in_the_order_of_the_model(tmp_path):
    names = {0: "yes", 1: "no"}
    model = make_bert(id2label=names, label2id={"yes": 0, "no": 1})
    texts, y = make_texts()
    estimator = TransformerClassifier(model, preprocessor=make_tokenizer(), device="cpu")
    clf = fit(estimator, texts, np.array(["no", "yes"])[y])
    assert clf.wrapped_.backbone_.columns == [1, 0]
    clf.save(tmp_path)
    loaded = DiffusionCalibratedClassifier.load(tmp_path, estimator)
    assert_same(clf, loaded, texts)
    assert not hasattr(estimator, "classes_")


@pytest.mark.parametrize("given", ["module", "unfitted", "fitted", "frozen"])
@pytest.mark.parametrize("readout", ["auto", "refit"])
def test_a_timm_model_is_given_again(tmp_path, given, readout):
    X, y = make_images(60)
    model = make_vit()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    clf = fit(model, X, y, readout=readout, inference="mean")
    clf.save(tmp_path)
    fitted = TransformerClassifier(model, device="cpu").fit(X, y)
    estimator = {
        "module": model,
        "unfitted": TransformerClassifier(model, device="cpu"),
        "fitted": fitted,
        "frozen": FrozenEstimator(fitted),
    }[given]
    loaded = DiffusionCalibratedClassifier.load(tmp_path, estimator)
    assert_same(clf, loaded, X)
    assert loaded.estimator is estimator
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert fitted.backbone_.custom_readout is None


def test_a_model_without_a_head_keeps_its_readout(tmp_path):
    X, y = make_images(60)
    model = make_vit(n_classes=0)
    clf = fit(model, X, y, transition="blockwise")
    clf.save(tmp_path)
    assert_same(clf, DiffusionCalibratedClassifier.load(tmp_path, model), X)


def test_a_fine_tuned_model_is_saved_with_its_weights(tmp_path, bert_directory):
    texts, y = make_texts()
    estimator = TransformerClassifier(bert_directory, finetune=True, max_epochs=1, device="cpu")
    clf = fit(estimator, texts, y, transition="blockwise")
    clf.save(tmp_path)
    loaded = DiffusionCalibratedClassifier.load(tmp_path)
    assert_same(clf, loaded, texts)
    untrained = TransformerClassifier(bert_directory, device="cpu").fit(texts, y)
    assert not np.array_equal(loaded.wrapped_.predict_proba(texts), untrained.predict_proba(texts))


# What is in the directory -----------------------------------------------------------------------


def test_no_file_holds_a_pickle(tmp_path, table_clf):
    table_clf.save(tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(files) == {"config.json", "tensors.safetensors"}
    json.loads(files["config.json"])
    for data in files.values():
        assert not zipfile.is_zipfile(io.BytesIO(data))
        assert not data.startswith((b"PK", b"\x80"))


def test_the_configuration_is_readable(tmp_path, table_clf):
    table_clf.set_params(callbacks=[]).save(tmp_path)
    table_clf.set_params(callbacks=None)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["format_version"] == 2
    assert config["package_version"]
    assert config["classes"] == {"kind": "int", "dtype": "<i8", "values": [0, 1, 2]}
    assert config["wrapped"]["n_features_in"] == 5
    assert config["params"]["n_samples"] == 4
    assert config["params"]["callbacks"] is None
    assert config["params"]["estimator"] is None
    fitted = config["fitted"]
    assert fitted["grids"] == [[0, 1, 2]]
    assert fitted["mean"] == {"intervals": [[0, 1], [1, 2]], "rank": 2, "group": [0, 0]}
    assert fitted["covariance"]["intervals"] == [[0, 1], [1, 2]]
    assert (
        fitted["calibration"]["2"]["mean"]["temperature"]
        == table_clf.calibration_["mean"].temperature
    )


@pytest.mark.parametrize("freeze", [False, True])
def test_the_loaded_classifier_can_be_fitted_again(tmp_path, freeze):
    X, y = numbers()
    estimator = quick_table(random_state=3)
    if freeze:
        estimator = FrozenEstimator(estimator.fit(X, y))
    clf = fit(estimator, X, y)
    clf.save(tmp_path)
    loaded = DiffusionCalibratedClassifier.load(tmp_path)
    again = clone(loaded).fit(X, y)
    expected = clone(clf).fit(X, y)
    np.testing.assert_array_equal(again.predict_proba(X), expected.predict_proba(X))


# Refusals ---------------------------------------------------------------------------------------


def test_saving_needs_a_fitted_classifier(tmp_path):
    with pytest.raises(NotFittedError):
        DiffusionCalibratedClassifier().save(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_only_an_earlier_save_is_replaced(tmp_path, table_clf, bert_directory):
    X, y = numbers()
    table_clf.save(tmp_path / "here")
    other = fit(quick_table(), X, y, transition="blockwise", random_state=5)
    other.save(tmp_path / "here")
    assert_same(other, DiffusionCalibratedClassifier.load(tmp_path / "here"), X)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for directory in (tmp_path / "full", bert_directory):
        with pytest.raises(ValueError, match="not empty"):
            table_clf.save(directory)
    with pytest.raises(ValueError, match="is a file"):
        table_clf.save(tmp_path / "full" / "notes.txt")
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"


def test_a_directory_of_another_kind_is_refused(tmp_path, table_clf, bert_directory):
    with pytest.raises(FileNotFoundError, match="no config.json"):
        DiffusionCalibratedClassifier.load(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="no tensors.safetensors"):
        DiffusionCalibratedClassifier.load(tmp_path)
    table_clf.save(tmp_path / "saved")
    config = tmp_path / "saved" / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"format_version": 2', '"format_version": 99'))
    with pytest.raises(ValueError, match="format version 99 .*reads versions up to 2"):
        DiffusionCalibratedClassifier.load(tmp_path / "saved")
    config.write_text('{"architectures": ["Bert"]}')
    with pytest.raises(ValueError, match="was not written by"):
        DiffusionCalibratedClassifier.load(tmp_path / "saved")


@pytest.fixture(scope="module")
def saved_vit(tmp_path_factory):
    X, y = make_images(60)
    model = make_vit()
    directory = tmp_path_factory.mktemp("vit")
    fit(model, X, y, transition="blockwise", inference="mean").save(directory)
    return directory, model, X, y


def other_weights(model):
    changed = make_vit()
    with torch.no_grad():
        changed.head.bias[0] += 1e-3
    return changed


@pytest.mark.parametrize(("other", "message"), [
    (lambda model: None, "expected estimator=, a VisionTransformer with 3 blocks.*got None"),
    (lambda model: make_vit(embed_dim=32), "expected VisionTransformer.*got VisionTransformer"),
    (lambda model: make_bert(), "3 blocks in 'blocks'.*got BertFor.* with 0 blocks"),
    (other_weights, "is not the one that was saved: expected .* weights .*got .* weights"),
    (lambda model: FTTransformerClassifier(), "got FTTransformerClassifier, not fitted"),
])  # fmt: skip
def test_a_missing_or_different_model_is_refused(saved_vit, other, message):
    directory, model, _, _ = saved_vit
    with pytest.raises(ValueError, match=message):
        DiffusionCalibratedClassifier.load(directory, other(model))


def test_a_model_with_fewer_blocks_is_refused(saved_vit):
    directory, _, _, _ = saved_vit
    short = make_vit()
    short.blocks = short.blocks[:2]
    with pytest.raises(ValueError, match="expected .*3 blocks.*got .*2 blocks"):
        DiffusionCalibratedClassifier.load(directory, short)


def test_a_fitted_classifier_of_other_classes_is_refused(saved_vit):
    directory, model, X, y = saved_vit
    fitted = TransformerClassifier(model, device="cpu").fit(X[y < 9], y[y < 9])
    with pytest.raises(ValueError, match=r"expected the classes \[0, .*9\], got \[0, .*8\]"):
        DiffusionCalibratedClassifier.load(directory, fitted)


def test_a_tokenizer_that_was_an_object_is_given_again(tmp_path):
    texts, y = make_texts()
    model, tokenizer = make_bert(), make_tokenizer()
    clf = fit(model, texts, y, preprocessor=tokenizer, transition="blockwise")
    clf.save(tmp_path)
    with pytest.raises(ValueError, match="preprocessor was not saved: expected .* with a Token"):
        DiffusionCalibratedClassifier.load(tmp_path, model)
    again = TransformerClassifier(model, preprocessor=tokenizer)
    assert_same(clf, DiffusionCalibratedClassifier.load(tmp_path, again), texts)


def test_a_model_that_has_moved_is_named(tmp_path):
    texts, y = make_texts()
    make_bert().save_pretrained(tmp_path / "old")
    make_tokenizer().save_pretrained(tmp_path / "old")
    clf = fit(str(tmp_path / "old"), texts, y, transition="blockwise")
    clf.save(tmp_path / "saved")
    (tmp_path / "old").rename(tmp_path / "new")
    with pytest.raises(ValueError, match="cannot be loaded from .*old': expected a BertFor"):
        DiffusionCalibratedClassifier.load(tmp_path / "saved")
    loaded = DiffusionCalibratedClassifier.load(tmp_path / "saved", str(tmp_path / "new"))
    assert_same(clf, loaded, texts)


def test_a_table_takes_no_other_model(tmp_path, table_clf):
    table_clf.save(tmp_path)
    with pytest.raises(ValueError, match="saved whole: expected estimator=None.*got VisionTrans"):
        DiffusionCalibratedClassifier.load(tmp_path, make_vit())
    loaded = DiffusionCalibratedClassifier.load(tmp_path, table_clf.wrapped_)
    assert_same(table_clf, loaded, numbers()[0])


class OwnClassifier(FTTransformerClassifier):
    """A subclass may encode rows in its own way, so it cannot be rebuilt."""

    def encode(self, X):
        return super().encode(-np.asarray(X))


def test_a_classifier_of_an_own_class_has_to_be_given(tmp_path):
    X, y = numbers()
    wrapped = OwnClassifier(max_epochs=1, width=8, n_blocks=2, device="cpu").fit(X, y)
    clf = fit(FrozenEstimator(wrapped), X, y, transition="blockwise")
    clf.save(tmp_path)
    with pytest.raises(ValueError, match="expected estimator=, a fitted OwnClassifier.*got None"):
        DiffusionCalibratedClassifier.load(tmp_path)
    assert_same(clf, DiffusionCalibratedClassifier.load(tmp_path, wrapped), X)


def test_categories_that_json_does_not_know_are_refused(tmp_path):
    X, y = numbers()
    X = pd.DataFrame(X, columns=list("abcde"))
    X["binned"] = pd.cut(X["a"], 3)
    clf = fit(quick_table(), X, y, transition="blockwise")
    with pytest.raises(ValueError, match="category of type Interval.*astype"):
        clf.save(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("covariance", ["gp", "attention", "constant"])
def test_every_covariance_and_number_of_steps_comes_back(tmp_path, covariance):
    X, y = numbers()
    saved = fit(quick_table(), X, y, covariance=covariance, n_steps=(2, 1))
    saved.save(tmp_path)
    loaded = DiffusionCalibratedClassifier.load(tmp_path)
    assert loaded.n_steps == [2, 1]
    for n_steps in (2, 1):
        saved.set_params(n_steps=n_steps)
        loaded.set_params(n_steps=n_steps)
        assert_same(saved, loaded, X)


# 8 blocks in 3 steps: shared matrices 0, 1, 1, which their number alone does not tell.
@pytest.mark.parametrize(
    ("n_blocks", "n_steps", "n_shared_blocks"),
    [(8, 3, 3), (5, 2, 3), (5, (3, 2), 2), (4, (4, 1), 4)],
)
def test_steps_share_the_blocks_they_were_trained_with(
    tmp_path, n_blocks, n_steps, n_shared_blocks
):
    X, y = numbers(60)
    table = FTTransformerClassifier(max_epochs=1, width=8, n_blocks=n_blocks, device="cpu")
    saved = fit(table, X, y, rank=1, n_steps=n_steps, n_shared_blocks=n_shared_blocks)
    saved.save(tmp_path)
    loaded = DiffusionCalibratedClassifier.load(tmp_path)
    assert loaded.transition_.group == saved.transition_.group
    for n in saved.fitted_steps_:
        saved.set_params(n_steps=n)
        loaded.set_params(n_steps=n)
        assert_same(saved, loaded, X)


def test_what_is_loaded_can_be_saved_again_and_pickled(tmp_path, table_clf):
    X, _ = numbers()
    table_clf.save(tmp_path / "one")
    loaded = DiffusionCalibratedClassifier.load(tmp_path / "one")
    loaded.save(tmp_path / "two")
    for name in ("config.json", "tensors.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert_same(table_clf, DiffusionCalibratedClassifier.load(tmp_path / "two"), X)
    assert_same(table_clf, pickle.loads(pickle.dumps(loaded)), X)


LOAD = """
import sys
import numpy as np
from sklearn_diffuq import DiffusionCalibratedClassifier
clf = DiffusionCalibratedClassifier.load(sys.argv[1])
proba = clf.predict_proba(np.load(sys.argv[2]))
np.save(sys.argv[3], proba)
print(sorted({"skorch", "transformers", "timm", "matplotlib"} & set(sys.modules)))
"""


def test_another_process_loads_it_without_what_only_a_fit_needs(tmp_path, table_clf):
    X, _ = numbers()
    table_clf.save(tmp_path / "saved")
    np.save(tmp_path / "X.npy", X)
    arguments = (str(tmp_path / name) for name in ("saved", "X.npy", "proba.npy"))
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
    np.testing.assert_array_equal(np.load(tmp_path / "proba.npy"), table_clf.predict_proba(X))
