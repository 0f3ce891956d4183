"""Models in another precision than float32, and quantised ones."""

import copy
import warnings

import numpy as np
import pytest
import torch
from sklearn.frozen import FrozenEstimator
from tiny_models import make_bert, make_images, make_texts, make_tokenizer, make_vit

from sklearn_diffuq import DiffusionCalibratedClassifier, TransformerClassifier
from sklearn_diffuq._backbones.ft_transformer import FTTransformer
from sklearn_diffuq._backbones.precision import n_weights
from sklearn_diffuq.baselines import LabelSmoothingClassifier
from sklearn_diffuq.exceptions import BackboneError, CalibrationWarning

TEXTS, Y = make_texts(180, longest=12)
TOLERANCE = {torch.float16: 3e-3, torch.bfloat16: 3e-2, torch.float64: 1e-6}


def enlarged(model):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return model


def calibrated(model, X=TEXTS, y=Y, **kwargs):
    options = {"transition": "blockwise", "random_state": 0, "device": "cpu"} | kwargs
    is_text = X is TEXTS
    clf = DiffusionCalibratedClassifier(
        model, preprocessor=make_tokenizer() if is_text else None, **options
    )
    return clf.fit(X, y)


def own_logits(model, texts=TEXTS):
    found = []
    with torch.no_grad():
        for text in texts:
            encoded = make_tokenizer()(text, truncation=True, max_length=40, return_tensors="pt")
            found.append(model(**encoded).logits[0].double())
    return torch.stack(found)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_the_mean_is_the_model_in_its_own_precision(dtype):
    model = enlarged(make_bert()).to(dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    clf = calibrated(model, inference="mean")
    expected = torch.softmax(own_logits(model) / clf.temperature_, 1)
    found = clf.predict_proba(TEXTS)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=TOLERANCE[dtype])
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    is_double = dtype == torch.float64
    assert (clf.wrapped_.module_ is model) != is_double
    again = clf.predict_proba(TEXTS[::-1])[::-1]
    np.testing.assert_array_equal(again, found)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("inference", ["moments", "sampling"])
@pytest.mark.parametrize("covariance", ["gp", "attention"])
def test_noise_and_distance_are_those_of_the_float32_model(dtype, inference, covariance):
    model, options = enlarged(make_bert()), {"inference": inference, "covariance": covariance}
    low, full = calibrated(copy.deepcopy(model).to(dtype), **options), calibrated(model, **options)
    for name in ("predict_proba", "score_samples"):
        found, expected = (getattr(clf, name)(TEXTS) for clf in (low, full))
        scale = max(1, np.abs(expected).max())
        np.testing.assert_allclose(found, expected, atol=10 * TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.filterwarnings("ignore::sklearn_diffuq.exceptions.CalibrationWarning")
def test_a_unified_transition_computes_in_float32(dtype, tmp_path):
    model = enlarged(make_bert()).to(dtype)
    clf = calibrated(model, transition="unified", rank=None, inference="mean")
    expected = torch.softmax(own_logits(model) / clf.temperature_, 1)
    np.testing.assert_allclose(clf.predict_proba(TEXTS), expected, atol=2 * TOLERANCE[dtype])
    assert {p.dtype for p in clf.transition_.parameters()} == {torch.float32}
    trained = calibrated(model, transition="unified", rank=4, max_epochs=1)
    assert np.isfinite(trained.predict_proba(TEXTS)).all()
    trained.save(tmp_path / "saved")
    wrapped = TransformerClassifier(model, preprocessor=make_tokenizer(), device="cpu")
    loaded = DiffusionCalibratedClassifier.load(tmp_path / "saved", estimator=wrapped)
    np.testing.assert_array_equal(loaded.predict_proba(TEXTS), trained.predict_proba(TEXTS))


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_images_and_tables_are_given_in_the_precision_of_the_model(dtype):
    X, y = make_images(60)
    model = make_vit().to(dtype)
    clf = TransformerClassifier(model, device="cpu").fit(X, y)
    with torch.no_grad():
        expected = torch.softmax(model(torch.as_tensor(X)[:, None].to(dtype)).double(), 1)
    np.testing.assert_allclose(clf.predict_proba(X), expected, atol=TOLERANCE[dtype])
    rows = X[:, 3]
    table = FTTransformer(8, [], 10, width=8, n_heads=2).eval().to(dtype)
    found = TransformerClassifier(table, device="cpu").fit(rows, y).predict_proba(rows)
    with torch.no_grad():
        expected = torch.softmax(table(torch.as_tensor(rows).to(dtype)).double(), 1)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE[dtype])


def test_a_model_in_half_precision_is_trained_in_float32():
    model = make_bert().bfloat16()
    clf = TransformerClassifier(
        model, preprocessor=make_tokenizer(), finetune=True, max_epochs=1, device="cpu"
    ).fit(TEXTS, Y)
    assert {p.dtype for p in clf.module_.parameters()} == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_a_fitted_model_in_half_precision():
    wrapped = TransformerClassifier(
        make_bert().bfloat16(), preprocessor=make_tokenizer(), device="cpu"
    ).fit(TEXTS, Y)
    found = calibrated(FrozenEstimator(wrapped)).predict_proba(TEXTS)
    np.testing.assert_array_equal(found, calibrated(make_bert().bfloat16()).predict_proba(TEXTS))


# -- quantised ------------------------------------------------------------------------------------


def dynamic_int8(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and still what people have
        return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)


def torchao_dynamic(model):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model, quantization.Int8DynamicActivationInt8WeightConfig())
    return model


def torchao_weights(model):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model


@pytest.mark.parametrize("quantise", [dynamic_int8, torchao_dynamic])
def test_quantised_layers_leave_no_noise(quantise, tmp_path):
    model = quantise(enlarged(make_bert()))
    with pytest.warns(CalibrationWarning, match="Gradients do not pass the quantised") as caught:
        clf = calibrated(model, inference="mean")
    assert len(caught) == 1
    expected = torch.softmax(own_logits(model) / clf.temperature_, 1)
    # dynamic scales depend on the batch
    np.testing.assert_allclose(clf.predict_proba(TEXTS), expected, atol=2e-2)
    for inference in ("moments", "sampling"):
        assert not clf.calibration_[inference].scales.any_noise
        clf.set_params(inference=inference)
        assert np.isfinite(clf.predict_proba(TEXTS)).all()
    clf.save(tmp_path / "saved")
    wrapped = TransformerClassifier(model, preprocessor=make_tokenizer(), device="cpu")
    loaded = DiffusionCalibratedClassifier.load(tmp_path / "saved", estimator=wrapped)
    np.testing.assert_array_equal(loaded.predict_proba(TEXTS), clf.predict_proba(TEXTS))
    other = TransformerClassifier(
        quantise(make_bert()), preprocessor=make_tokenizer(), device="cpu"
    )
    with pytest.raises(BackboneError, match="not the one that was saved"):
        DiffusionCalibratedClassifier.load(tmp_path / "saved", estimator=other)


def test_quantised_weights_that_gradients_pass_keep_the_noise():
    model = enlarged(make_bert())
    expected = calibrated(copy.deepcopy(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error", CalibrationWarning)
        found = calibrated(torchao_weights(model))
    np.testing.assert_allclose(found.predict_proba(TEXTS), expected.predict_proba(TEXTS), atol=3e-2)


def test_quantised_blocks_have_no_unified_transition():
    model = dynamic_int8(make_bert())
    with pytest.raises(BackboneError, match=r"are quantised.*transition='blockwise'"):
        calibrated(model, transition="unified")


def test_packed_weights_are_counted():
    model = make_bert()
    assert n_weights(dynamic_int8(model)) == n_weights(model) == model.num_parameters()


@pytest.mark.parametrize("kind", [TransformerClassifier, LabelSmoothingClassifier])
def test_a_quantised_model_is_not_trained(kind):
    options = {"finetune": True} if kind is TransformerClassifier else {}
    clf = kind(dynamic_int8(make_bert()), preprocessor=make_tokenizer(), device="cpu", **options)
    with pytest.raises(BackboneError, match="quantised layers .* cannot be trained"):
        clf.fit(TEXTS, Y)
