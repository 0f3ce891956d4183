"""The estimator: what a user sees of the six stages."""

import copy
import pickle
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_iris, make_classification
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback, EpochTimer
from timm.models import VisionTransformer
from tiny_models import make_bert, make_texts, make_tokenizer

from sklearn_diffuq import (
    DiffusionCalibratedClassifier,
    FTTransformerClassifier,
    TransformerClassifier,
    _fit_path,
    diffusion_step_curve,
)
from sklearn_diffuq._calibration import calibrator as calibrator_module
from sklearn_diffuq._calibration.calibration import Calibration
from sklearn_diffuq._fitted_path import FittedPath
from sklearn_diffuq._inputs.table_encoder import TableEncoder
from sklearn_diffuq._path.covariance import NoiseScales
from sklearn_diffuq._propagation.margin_table import MomentTable
from sklearn_diffuq.exceptions import BackboneError, CalibrationWarning, ReadoutWarning

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore::sklearn_diffuq.exceptions.CalibrationWarning"),
]


@pytest.fixture(scope="module")
def table():
    X, y = make_classification(400, 8, n_informative=5, n_classes=3, flip_y=0.15, random_state=0)
    return X[:300], y[:300], X[300:], y[300:]


@pytest.fixture(scope="module")
def wrapped(table):
    X, y, _, _ = table
    return FTTransformerClassifier(random_state=0).fit(X[:200], y[:200])


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=8, patch_size=4, in_chans=1, embed_dim=16, depth=4, num_heads=2, num_classes=3
    )
    X = np.random.default_rng(0).normal(size=(120, 1, 8, 8)).astype(np.float32)
    y = (X[:, 0, :4].mean((1, 2)) > 0).astype(int) + (X[:, 0, 4:].mean((1, 2)) > 0)
    return model, X, y


def _fit(wrapped, table, **params):
    X, y, _, _ = table
    params = {"random_state": 0, "max_epochs": 2} | params
    clf = DiffusionCalibratedClassifier(FrozenEstimator(wrapped), **params)
    return clf.fit(X[:200], y[:200], X_calibration=X[200:], y_calibration=y[200:])


def _set_noise(clf, scales):
    """Give every kind of inference the same noise and temperature."""
    k, table = min(10, len(clf.classes_)), None
    if scales.shared or scales.token:
        generator = torch.Generator().manual_seed(0)
        margins = -torch.rand(30, k - 1, generator=generator).double().sort(1).values
        table = MomentTable(margins, 0.3 * torch.eye(k).double().expand(30, k, k))
    calibration = Calibration(scales, 1.0, 0.0, table)
    same = {n: dict.fromkeys(c, calibration) for n, c in clf._fitted.calibrations.items()}
    clf._fitted = replace(clf._fitted, calibrations=same)


# What it holds ------------------------------------------------------------------------------


def test_what_was_fitted_is_one_object(wrapped, table):
    clf = _fit(wrapped, table, transition="blockwise", n_steps=(3, 1))
    private = [name for name in vars(clf) if name.startswith("_")]
    assert private == ["_fitted"]
    assert isinstance(clf._fitted, FittedPath)
    assert clf.fitted_steps_ == (3, 1)
    assert clf.transition_ is clf._fitted.path.mean
    assert clf.covariance_ is clf._fitted.path.covariance
    assert clf.history_ is clf._fitted.history
    assert clf.set_params(n_steps=1).calibration_ is clf._fitted.calibrations[1]
    assert clf.n_parameters_ == clf._fitted.n_parameters(1, "moments")


@pytest.mark.parametrize("transition", ["unified", "blockwise"])
def test_a_pickle_predicts_the_same_bits_for_every_number_of_steps(wrapped, table, transition):
    X = table[2]
    clf = _fit(wrapped, table, transition=transition, rank=2, n_steps=(3, 1))
    _set_noise(clf, NoiseScales(0.5, 0.2, 0.3))
    again = pickle.loads(pickle.dumps(clf))
    assert again.fitted_steps_ == (3, 1)
    for n_steps in (3, 1):
        for inference in ("sampling", "moments", "mean"):
            for each in (clf, again):
                each.set_params(n_steps=n_steps, inference=inference)
            assert np.array_equal(again.predict_proba(X), clf.predict_proba(X))
            assert again.n_parameters_ == clf.n_parameters_
        assert np.array_equal(again.score_samples(X), clf.score_samples(X))


# What `fit` does once -----------------------------------------------------------------------


def _encoded_tables(monkeypatch):
    """Return the list of the tables that are encoded from now on."""
    encoded = []
    for name in ("fit_transform", "transform"):
        original = getattr(TableEncoder, name)

        def counted(self, owner, X, *args, _original=original):
            encoded.append(X)
            return _original(self, owner, X, *args)

        monkeypatch.setattr(TableEncoder, name, counted)
    return encoded


@pytest.mark.parametrize("kind", ["none", "unfitted", "frozen"])
@pytest.mark.parametrize("held_out", ["given", "split"])
def test_rows_of_a_table_are_encoded_once(wrapped, table, monkeypatch, kind, held_out):
    X, y, _, _ = table
    unfitted = FTTransformerClassifier(max_epochs=1, n_blocks=2, width=8)
    given = {"none": None, "unfitted": unfitted, "frozen": FrozenEstimator(wrapped)}[kind]
    if kind == "none":
        monkeypatch.setattr(FTTransformerClassifier, "_train", lambda *args: [])
    clf = DiffusionCalibratedClassifier(given, transition="blockwise", random_state=0)
    encoded = _encoded_tables(monkeypatch)
    if held_out == "given":
        clf.fit(X[:240], y[:240], X_calibration=X[240:], y_calibration=y[240:])
    else:
        clf.fit(X, y)
    assert len(encoded) == 2  # the training rows and the held-out rows
    rows = np.concatenate(encoded)
    np.testing.assert_array_equal(rows[np.lexsort(rows.T)], X[np.lexsort(X.T)])


@pytest.mark.parametrize("kind", ["module", "unfitted", "frozen"])
def test_texts_are_tokenised_once(kind):
    texts, y = make_texts(80)
    texts = [f"{text} {i}" for i, text in enumerate(texts)]
    model, tokenizer = make_bert(), _CountingTokenizer(make_tokenizer())
    unfitted = TransformerClassifier(model, preprocessor=tokenizer, device="cpu")
    given = model if kind == "module" else unfitted
    if kind == "frozen":
        given = FrozenEstimator(unfitted.fit(texts, y))
    clf = DiffusionCalibratedClassifier(
        given,
        preprocessor=tokenizer if kind == "module" else None,
        transition="blockwise",
        device="cpu",
        random_state=0,
    )
    tokenizer.read.clear()
    clf.fit(texts, y)
    assert sorted(tokenizer.read) == sorted(texts)


class _CountingTokenizer:
    """A tokenizer that writes down what it has read."""

    def __init__(self, tokenizer):
        self.tokenizer, self.read = tokenizer, []

    def __getattr__(self, name):
        if name.startswith("__") or name == "tokenizer":
            raise AttributeError(name)
        return getattr(self.tokenizer, name)

    def __call__(self, texts, *args, **kwargs):
        self.read.extend([texts] if isinstance(texts, str) else texts)
        return self.tokenizer(texts, *args, **kwargs)

    def __sklearn_clone__(self):
        return self


def test_a_pass_that_fits_nothing_tokenises_once_too(table):
    texts, y = make_texts(80)
    tokenizer = _CountingTokenizer(make_tokenizer())
    clf = TransformerClassifier(make_bert(), preprocessor=tokenizer, device="cpu").fit(texts, y)
    assert len(tokenizer.read) == 80
    clf.predict_proba(texts)
    assert len(tokenizer.read) == 160


# The options of training ---------------------------------------------------------------------


def test_every_option_reaches_the_training(wrapped, table, monkeypatch):
    seen = []

    def spy(objective, held_out):
        seen.append(objective.options)
        return []

    monkeypatch.setattr(_fit_path, "train_transition", spy)
    callbacks = [EpochTimer()]
    options = {
        "path_weight": 0.11,
        "distillation_weight": 0.22,
        "label_weight": 0.33,
        "batch_size": 17,
        "precision": "bfloat16",
    }
    loop = {"max_epochs": 7, "lr": 0.0123, "callbacks": callbacks, "compile": True, "verbose": 2}
    _fit(wrapped, table, rank=2, **options, **loop)
    (found,) = seen
    assert {name: getattr(found, name) for name in options} == options
    assert {name: getattr(found.loop, name) for name in loop} == loop
    assert found.loop.callbacks is callbacks
    assert (found.loop.average, found.loop.patience, found.loop.weight_decay) == (0.99, None, 0.0)
    assert found.mixed_precision


class _Watch(Callback):
    """A skorch callback that writes down what the loop does, and can stop it."""

    def __init__(self, stop_after=None):
        self.stop_after = stop_after

    def on_train_begin(self, net, **kwargs):
        self.lrs, self.sizes, self.n_epochs = [], [], 0

    def on_batch_end(self, net, batch=None, training=True, **kwargs):
        self.sizes.append(len(batch))
        self.lrs.append(net.optimizer_.param_groups[0]["lr"])

    def on_epoch_end(self, net, **kwargs):
        self.n_epochs += 1
        if self.n_epochs == self.stop_after:
            raise KeyboardInterrupt


def test_rate_batches_epochs_and_callbacks_are_those_asked_for(wrapped, table):
    watch = _Watch()
    clf = _fit(wrapped, table, rank=2, max_epochs=3, lr=0.0045, batch_size=50, callbacks=[watch])
    assert watch.n_epochs == len(clf.history_) == 3
    assert max(watch.sizes) == 50
    assert sum(watch.sizes) == 3 * 200
    assert 0.004 < max(watch.lrs) <= 0.0045
    watch = _Watch(stop_after=2)
    assert len(_fit(wrapped, table, rank=2, max_epochs=5, callbacks=[watch]).history_) == 2


def test_compiling_is_asked_for_and_undone(wrapped, table, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    clf = _fit(wrapped, table, rank=2, max_epochs=1)
    assert compiled == []
    clf = _fit(wrapped, table, rank=2, max_epochs=1, compile=True)
    assert compiled == [clf.transition_]
    assert clf.transition_._compiled_call_impl is None


# What the path promises ---------------------------------------------------------------------


def test_blockwise_mean_is_the_wrapped_model_up_to_the_temperature(wrapped, table):
    clf = _fit(wrapped, table, transition="blockwise", inference="mean")
    logits = wrapped.decision_function(table[2]) / clf.temperature_
    expected = np.exp(logits - logits.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(clf.predict_proba(table[2]), expected, atol=1e-6)


def test_full_rank_and_one_step_per_block_is_the_wrapped_model(wrapped, table):
    clf = _fit(wrapped, table, rank=None, inference="mean")
    logits = wrapped.decision_function(table[2]) / clf.temperature_
    np.testing.assert_allclose(
        clf.predict_log_proba(table[2]),
        torch.log_softmax(torch.as_tensor(logits), 1),
        atol=1e-4,
    )
    assert clf.history_ == []


@pytest.mark.parametrize("transition", ["unified", "blockwise"])
@pytest.mark.parametrize("inference", ["sampling", "moments", "mean"])
def test_a_row_has_the_same_answer_alone_in_any_batch_and_in_any_order(
    wrapped, table, transition, inference
):
    clf = _fit(wrapped, table, transition=transition, inference=inference)
    _set_noise(clf, NoiseScales(0.5, 0.2, 0.3))
    X = table[2]
    proba = clf.predict_proba(X)
    order = np.random.default_rng(0).permutation(len(X))
    assert np.array_equal(clf.predict_proba(X[order]), proba[order])
    assert np.array_equal(clf.predict_proba(X[7:8]), proba[7:8])
    assert np.array_equal(clf.predict_proba(X[:37]), proba[:37])


def test_one_seed_gives_one_answer(wrapped, table):
    a, b = (_fit(wrapped, table, rank=2).predict_proba(table[2]) for _ in range(2))
    assert np.array_equal(a, b)
    c = _fit(wrapped, table, rank=2, random_state=1).predict_proba(table[2])
    assert not np.array_equal(a, c)


def test_inference_can_be_set_after_fit(wrapped, table, monkeypatch):
    noisy = Calibration(NoiseScales(0.5, 0.2, 0.1), 1.0, 0.0)
    monkeypatch.setattr(calibrator_module, "fit_noise", lambda *args, **kwargs: noisy)
    clf = _fit(wrapped, table, transition="blockwise")
    assert clf.calibration_["moments"] is noisy
    for inference in ("mean", "moments"):
        fitted_for_it = _fit(wrapped, table, transition="blockwise", inference=inference)
        proba = clf.set_params(inference=inference).predict_proba(table[2])
        assert np.array_equal(proba, fitted_for_it.predict_proba(table[2]))
    clf.set_params(inference="sampling", n_samples=4)
    assert clf.noise_scale_ == NoiseScales(0.25, 0.1, 0.1)
    assert len(np.unique(clf.sample_proba(table[2][:1])[:, 0, 0])) == 4


def test_real_paths_are_drawn_in_fit_only_if_they_are_asked_for(wrapped, table, monkeypatch):
    noisy, drawn = Calibration(NoiseScales(0.5, 0.2, 0.1), 1.0, 0.0), []
    monkeypatch.setattr(calibrator_module, "fit_noise", lambda *args, **kwargs: noisy)
    propagate = calibrator_module.propagate
    monkeypatch.setattr(
        calibrator_module, "propagate", lambda *args: drawn.append(args) or propagate(*args)
    )
    _fit(wrapped, table, transition="blockwise")
    assert not drawn
    _fit(wrapped, table, transition="blockwise", inference="sampling")
    assert drawn


def test_the_wrapped_model_is_never_changed(images):
    model, X, y = images
    model.train()
    before = copy.deepcopy(model.state_dict())
    DiffusionCalibratedClassifier(model, rank=2, max_epochs=1, random_state=0).fit(X, y)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_training_improves_a_low_rank_transition(wrapped, table):
    clf = _fit(
        wrapped, table, rank=1, n_steps=2, max_epochs=40, batch_size=32, lr=3e-3, inference="mean"
    )
    losses = [entry["valid_loss"] for entry in clf.history_]
    assert min(losses) < losses[0]
    assert clf.n_parameters_ < clf.n_block_parameters_
    assert len(clf.history_[-1]["rolled_out_r2"]) == clf.n_steps_ == 2
    first, last = (clf.history_[i]["rolled_out_r2"][-1] for i in (0, -1))
    assert last > max(first, 0.3)


def test_calibration_beats_the_raw_model_on_held_out_rows(wrapped, table):
    clf = _fit(wrapped, table, transition="blockwise")
    X, y = table[0][200:], table[1][200:]
    assert log_loss(y, clf.predict_proba(X)) <= log_loss(y, wrapped.predict_proba(X)) + 1e-6


# Uncertainty -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def noisy(wrapped, table):
    clf = _fit(wrapped, table, transition="blockwise", inference="sampling", n_samples=8)
    _set_noise(clf, NoiseScales(0.5, 0.2, 0.3))
    return clf


def test_uncertainty_is_that_of_the_single_paths(noisy, table):
    X = table[2]
    u, p = noisy.predict_uncertainty(X), noisy.sample_proba(X)
    assert p.shape == (8, len(X), 3)
    mean = p.mean(0)
    np.testing.assert_allclose(mean, noisy.predict_proba(X), atol=1e-12)
    np.testing.assert_allclose(u.total, -(mean * np.log(mean)).sum(1), atol=1e-9)
    np.testing.assert_allclose(u.aleatoric, -(p * np.log(p)).sum(2).mean(0), atol=1e-9)
    np.testing.assert_allclose(u.epistemic, u.total - u.aleatoric, atol=1e-9)
    assert u.epistemic.min() > 0
    assert u.path_variance.shape == (len(X), noisy.n_steps_)
    assert u.path_variance.min() > 0


def test_more_samples_can_be_asked_for(noisy, table):
    assert noisy.sample_proba(table[2][:3], n_samples=32).shape == (32, 3, 3)


def test_paths_of_another_seed(noisy, table):
    X = table[2][:20]
    expected = noisy.sample_proba(X)
    assert np.array_equal(noisy.sample_proba(X, random_state=None), expected)
    one, again = (noisy.sample_proba(X, random_state=1) for _ in range(2))
    assert np.array_equal(one, again)
    assert one.shape == expected.shape
    assert not np.array_equal(one, expected)
    state = np.random.RandomState(1)
    assert np.array_equal(noisy.sample_proba(X, random_state=state), one)
    assert not np.array_equal(noisy.sample_proba(X, random_state=state), one)  # it goes on
    assert np.array_equal(noisy.sample_proba(X), expected)


@pytest.mark.parametrize("n_samples", [0, -3, "8", 2.0, True, float("nan")])
def test_a_number_of_paths_that_is_none_is_refused(noisy, table, n_samples):
    message = f"n_samples must be an int of at least 1, got {n_samples!r}"
    changed = copy.copy(noisy).set_params(n_samples=n_samples)
    for method in ("predict_proba", "predict", "predict_uncertainty", "sample_proba"):
        with pytest.raises(ValueError, match=message):
            getattr(changed, method)(table[2])
    with pytest.raises(ValueError, match=message):
        noisy.sample_proba(table[2], n_samples)


def test_without_noise_all_paths_are_the_same(wrapped, table):
    clf = _fit(wrapped, table, transition="blockwise")
    _set_noise(clf, NoiseScales())
    paths = clf.sample_proba(table[2], 3)
    assert paths.shape == (3, len(table[2]), 3)
    assert (paths == paths[0]).all()


@pytest.mark.parametrize("inference", ["bogus", None, "Mean"])
def test_nonsense_set_after_fit_is_refused(wrapped, table, inference):
    clf = _fit(wrapped, table, transition="blockwise").set_params(inference=inference)
    for ask in (
        lambda: clf.predict_proba(table[2]),
        lambda: clf.predict_uncertainty(table[2]),
        lambda: clf.temperature_,
        lambda: clf.noise_scale_,
    ):
        with pytest.raises(ValueError, match=r"inference must be one of .*'moments'.*got"):
            ask()


def test_scores_fall_away_from_the_training_data(noisy, table):
    near = noisy.score_samples(table[2]).mean()
    far = noisy.score_samples(table[2] + 4.0).mean()
    assert near > far


def test_without_noise_nothing_is_epistemic(wrapped, table):
    clf = _fit(wrapped, table, transition="blockwise", inference="mean")
    u = clf.predict_uncertainty(table[2])
    np.testing.assert_allclose(u.epistemic, 0, atol=1e-12)


# scikit-learn ----------------------------------------------------------------------------------


def _quick(**params):
    base = FTTransformerClassifier(max_epochs=3, random_state=0)
    return DiffusionCalibratedClassifier(
        base, rank=2, max_epochs=1, n_samples=2, random_state=0, **params
    )


@pytest.mark.parametrize(
    "relabel",
    [
        lambda y: np.array(["a", "b", "c"])[y],
        lambda y: y - 1,
        lambda y: y + 1,
        lambda y: pd.Series(y, index=np.random.default_rng(0).permutation(len(y))),
    ],
    ids=["str", "negative", "from one", "shuffled Series"],
)
def test_labels_of_all_kinds_give_the_same_probabilities(table, relabel):
    X, y, X_test, _ = table
    expected = _quick().fit(X, y).predict_proba(X_test)
    clf = _quick().fit(X, relabel(y))
    np.testing.assert_array_equal(clf.predict_proba(X_test), expected)
    assert set(clf.predict(X_test)) <= set(np.asarray(relabel(y)))


def test_boolean_labels(table):
    X, y, X_test, _ = table
    clf = _quick().fit(X, y > 0)
    assert clf.predict(X_test).dtype == bool
    assert clf.decision_function(X_test).shape == (len(X_test),)


def test_grid_search_over_steps_in_a_pipeline_with_two_jobs(table):
    X, y, _, _ = table
    pipeline = make_pipeline(StandardScaler(), _quick())
    grid = {"diffusioncalibratedclassifier__n_steps": [1, 3]}
    search = GridSearchCV(pipeline, grid, cv=2, scoring="neg_log_loss", n_jobs=2).fit(X, y)
    assert search.best_params_["diffusioncalibratedclassifier__n_steps"] in (1, 3)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_cross_val_predict_and_calibration_around_it(table):
    X, y, X_test, _ = table
    assert cross_val_predict(_quick(), X, y, cv=2, method="predict_proba").shape == (300, 3)
    around = CalibratedClassifierCV(_quick(), method="temperature", cv=2).fit(X, y)
    np.testing.assert_allclose(around.predict_proba(X_test).sum(1), 1)


def test_voting_and_stacking(table):
    X, y, X_test, _ = table
    members = [("d", _quick()), ("l", LogisticRegression())]
    voting = VotingClassifier(members, voting="soft").fit(X, y)
    stacking = StackingClassifier(members, cv=2).fit(X, y)
    assert voting.predict_proba(X_test).shape == stacking.predict_proba(X_test).shape


def test_pickle_and_clone(noisy, table):
    again = pickle.loads(pickle.dumps(noisy))
    assert np.array_equal(again.predict_proba(table[2]), noisy.predict_proba(table[2]))
    assert clone(noisy).get_params()["transition"] == "blockwise"


def test_sample_weight_zero_is_absence(table):
    X, y, X_test, _ = table
    weight = np.ones(len(y))
    weight[::3] = 0
    kept = weight > 0
    a = _quick().fit(X, y, sample_weight=weight).predict_proba(X_test)
    b = _quick().fit(X[kept], y[kept]).predict_proba(X_test)
    np.testing.assert_array_equal(a, b)


def test_metadata_routing_passes_weights(table):
    import sklearn

    X, y, _, _ = table
    with sklearn.config_context(enable_metadata_routing=True):
        scaler = StandardScaler().set_fit_request(sample_weight=True)
        clf = make_pipeline(scaler, _quick().set_fit_request(sample_weight=True))
        clf.fit(X, y, sample_weight=np.linspace(0.1, 1, len(y)))
    assert clf.predict(X).shape == y.shape


# Readouts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("readout", ["auto", "frozen", "refit"])
def test_readouts_leave_the_wrapped_model_alone(wrapped, table, readout):
    before = copy.deepcopy(wrapped.module_.state_dict())
    expected = wrapped.predict_proba(table[2])
    clf = _fit(wrapped, table, rank=2, inference="mean", readout=readout)
    assert all(torch.equal(v, before[k]) for k, v in wrapped.module_.state_dict().items())
    np.testing.assert_array_equal(wrapped.predict_proba(table[2]), expected)
    own = clf.wrapped_.predict_proba(table[2])
    assert np.array_equal(own, expected) == (readout in ("auto", "frozen"))
    assert not any("readout" in name for name, _ in clf.transition_.named_parameters())


def test_the_unit_of_sample_weights_does_not_change_a_refitted_readout(wrapped, table):
    weight = np.random.default_rng(0).uniform(0.1, 2, len(table[1]))
    options = {"transition": "blockwise", "inference": "mean", "readout": "refit"}
    found = [
        DiffusionCalibratedClassifier(FrozenEstimator(wrapped), random_state=0, **options)
        .fit(table[0], table[1], weight * unit)
        .predict_proba(table[2])
        for unit in (1, 1000)
    ]
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)


def test_a_fit_on_an_array_forgets_the_column_names_of_an_earlier_one(wrapped, table):
    X, y, _, _ = table
    options = {"transition": "blockwise", "random_state": 0}
    clf = DiffusionCalibratedClassifier(FTTransformerClassifier(max_epochs=1), **options)
    clf.fit(pd.DataFrame(X, columns=list("abcdefgh")), y)
    assert list(clf.feature_names_in_) == list("abcdefgh")
    assert not hasattr(clf.fit(X, y), "feature_names_in_")
    assert clf.n_features_in_ == 8


def test_a_frozen_readout_has_to_fit(images):
    model, X, y = images
    clf = DiffusionCalibratedClassifier(model, readout="frozen")
    with (
        pytest.warns(ReadoutWarning),
        pytest.raises(ValueError, match="no head that fits the labels"),
    ):
        clf.fit(X, np.array(list("abcde"))[np.arange(len(y)) % 5])


# Bad input -------------------------------------------------------------------------------------


def test_too_many_steps(wrapped, table):
    with pytest.raises(ValueError, match=r"n_steps=9.*3 blocks.*between 1 and 3"):
        _fit(wrapped, table, n_steps=9)


def test_few_held_out_rows_warn(wrapped, table):
    X, y, _, _ = table
    clf = DiffusionCalibratedClassifier(FrozenEstimator(wrapped), max_epochs=1, random_state=0)
    with pytest.warns(CalibrationWarning, match="held out"):
        clf.fit(X[:40], y[:40])


def test_half_a_calibration_set(table):
    X, y, _, _ = table
    with pytest.raises(ValueError, match="belong together"):
        _quick().fit(X, y, X_calibration=X)


def test_unseen_calibration_class(wrapped, table):
    X, y, _, _ = table
    clf = DiffusionCalibratedClassifier(FrozenEstimator(wrapped))
    with pytest.raises(ValueError, match=r"\[7\] are unknown"):
        clf.fit(X, y, X_calibration=X[:30], y_calibration=np.full(30, 7) * (np.arange(30) > 5))


def test_one_class(table):
    with pytest.raises(ValueError, match="one class"):
        _quick().fit(table[0], np.zeros(300))


def test_estimators_without_a_transformer_are_refused(table):
    with pytest.raises(TypeError, match="cannot look into a LogisticRegression"):
        DiffusionCalibratedClassifier(LogisticRegression()).fit(table[0], table[1])


def test_unfitted_use(table):
    for method in ("predict", "predict_proba", "score_samples", "predict_uncertainty"):
        with pytest.raises(NotFittedError):
            getattr(_quick(), method)(table[0])


def test_a_failed_refit_keeps_the_fit(wrapped, table):
    clf = _fit(wrapped, table, transition="blockwise")
    before = clf.predict_proba(table[2])
    bad = table[0].copy()
    bad[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        clf.fit(bad, table[1])
    assert np.array_equal(clf.predict_proba(table[2]), before)


def test_models_without_blocks_are_refused(images):
    _, X, y = images
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    with pytest.raises(BackboneError):
        DiffusionCalibratedClassifier(model).fit(X, y)


def test_iris_out_of_the_box():
    X, y = load_iris(return_X_y=True)
    clf = DiffusionCalibratedClassifier(random_state=0).fit(X, y)
    assert clf.score(X, y) > 0.9


# Several numbers of steps, and what is kept for another fit ----------------------------------


def test_one_fit_serves_every_number_of_steps_it_was_asked_for(wrapped, table):
    X, y, _, _ = table
    clf = _fit(wrapped, table, transition="blockwise", n_steps=(3, 1))
    assert clf.n_steps_ == 3
    before = clf.predict_proba(X)
    curve = diffusion_step_curve(clf, X, y)
    assert curve.n_steps.tolist() == [1, 3]
    for i, n_steps in enumerate(curve.n_steps):
        clf.set_params(n_steps=int(n_steps))
        proba = clf.predict_proba(X)
        assert clf.predict_uncertainty(X).path_variance.shape == (len(X), n_steps)
        assert curve.log_loss[i] == pytest.approx(log_loss(y, proba))
        assert curve.accuracy[i] == pytest.approx(clf.score(X, y))
    np.testing.assert_array_equal(clf.set_params(n_steps=(3, 1)).predict_proba(X), before)
    clf.set_params(n_steps=2)
    with pytest.raises(ValueError, match=r"n_steps=2 was not fitted.*\[1, 3\]"):
        clf.predict_proba(X)


@pytest.mark.parametrize("n_steps", [(), (2, 1.5), (4, 2)])
def test_numbers_of_steps_that_make_no_sense_are_refused(wrapped, table, n_steps):
    with pytest.raises(ValueError, match="n_steps"):
        _fit(wrapped, table, n_steps=n_steps)


def test_memory_trains_the_wrapped_estimator_once(table, tmp_path, monkeypatch):
    X, y, _, _ = table
    fits = []
    fit = FTTransformerClassifier.fit_encode

    def counted(self, X, y, sample_weight=None):
        fits.append(len(X))
        return fit(self, X, y, sample_weight)

    monkeypatch.setattr(FTTransformerClassifier, "fit_encode", counted)
    clf = DiffusionCalibratedClassifier(
        FTTransformerClassifier(max_epochs=1, n_blocks=2, width=8, device="cpu"),
        transition="blockwise", memory=str(tmp_path), random_state=0,
    )  # fmt: skip
    first = clone(clf).set_params(n_steps=1).fit(X, y).predict_proba(X)
    second = clone(clf).set_params(n_steps=2).fit(X, y).predict_proba(X)
    assert len(fits) == 1
    again = clone(clf).set_params(n_steps=2, memory=None).fit(X, y).predict_proba(X)
    assert len(fits) == 2
    np.testing.assert_array_equal(second, again)
    assert first.shape == second.shape


def test_with_the_mean_path_a_temperature_is_all_that_is_done(wrapped, table):
    X = table[2]
    clf = _fit(wrapped, table, transition="blockwise", inference="mean")
    logits = np.log(wrapped.predict_proba(X)) / clf.temperature_
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(clf.predict_proba(X), expected, atol=1e-6)


def test_held_out_rows_that_are_few_or_lack_a_class_are_said(wrapped, table):
    X, y, _, _ = table
    clf = DiffusionCalibratedClassifier(
        FrozenEstimator(wrapped), transition="blockwise", random_state=0
    )
    rows = np.flatnonzero(y[200:] < 2)[:15] + 200
    message = r"Only 15 rows.*No row of the class\(es\) 2 is held out.*more rows in X_calibration"
    with pytest.warns(CalibrationWarning, match=message) as warned:
        clf.fit(X[:200], y[:200], X_calibration=X[rows], y_calibration=y[rows])
    assert warned[0].filename == __file__  # the line that called fit
    y_rare = np.r_[y[:200], 7]
    wrapped = FTTransformerClassifier(random_state=0, max_epochs=1)
    with pytest.warns(CalibrationWarning, match=r"No row of the class\(es\) 7 ") as warned:
        clf.set_params(estimator=wrapped).fit(X[:201], y_rare)
    assert warned[0].filename == __file__


@pytest.mark.parametrize("inference", ["moments", "sampling", "mean"])
def test_an_epistemic_part_of_zero_is_said_once(wrapped, table, inference):
    clf = _fit(wrapped, table, transition="blockwise", inference=inference)
    X = table[2]
    _set_noise(clf, NoiseScales())
    message = "inference='moments'" if inference == "mean" else "no noise.*lead to no gain"
    with pytest.warns(CalibrationWarning, match=f"epistemic.*zero.*{message}") as warned:
        uncertainty = clf.predict_uncertainty(X)
    assert len(warned) == 1
    assert warned[0].filename == __file__
    assert not uncertainty.epistemic.any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clf.predict_uncertainty(X)
        pickle.loads(pickle.dumps(clf)).predict_uncertainty(X)
    again = _fit(wrapped, table, transition="blockwise", inference=inference)
    _set_noise(again, NoiseScales())
    with pytest.warns(CalibrationWarning, match="epistemic"):
        again.predict_uncertainty(X)


def test_an_epistemic_part_above_zero_is_not_said_to_be_zero(wrapped, table):
    clf = _fit(wrapped, table, transition="blockwise")
    _set_noise(clf, NoiseScales(0.5, 0.2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert clf.predict_uncertainty(table[2]).epistemic.all()
    with pytest.warns(CalibrationWarning, match="n_samples=1"):
        clf.set_params(inference="sampling", n_samples=1).predict_uncertainty(table[2])
