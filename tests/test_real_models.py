"""The two fine-tuned models on real data; skipped where these are absent."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import log_loss
from timm.models import VisionTransformer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sklearn_diffuq import DiffusionCalibratedClassifier, TransformerClassifier
from sklearn_diffuq.datasets import fetch_fashion_mnist, fetch_movie_reviews
from sklearn_diffuq.metrics import expected_calibration_error

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def fashion(shared):
    model = VisionTransformer(
        img_size=28, patch_size=7, in_chans=1, num_classes=10, embed_dim=128, depth=8, num_heads=4
    )
    model.load_state_dict(load_file(shared / "models/vit-fashion-mnist/model.safetensors"))
    return model, fetch_fashion_mnist(shared / "data", normalize=True)


@pytest.mark.filterwarnings("ignore::sklearn_diffuq.exceptions.CalibrationWarning")
def test_a_quarter_of_the_parameters_learns_to_follow_the_vit(fashion):
    model, data = fashion
    wrapped = TransformerClassifier(model).fit(data.X_calibration[:64], data.y_calibration[:64])
    classifier = DiffusionCalibratedClassifier(
        FrozenEstimator(wrapped), n_steps=4, rank=16, max_epochs=4, inference="mean", random_state=0
    )
    some = slice(0, 600)
    classifier.fit(
        data.X_train[:2000],
        data.y_train[:2000],
        X_calibration=data.X_calibration[some],
        y_calibration=data.y_calibration[some],
    )
    assert classifier.n_parameters_ < 0.25 * classifier.n_block_parameters_
    X, y = data.X_test[:500], data.y_test[:500]
    assert wrapped.score(X, y) > 0.84
    assert classifier.score(X, y) > 0.65  # 0.10 by chance; the start alone gives about 0.37
    # On the way from images to noise, everything gets stranger.
    noise = np.random.default_rng(0).normal(size=X[:100].shape).astype(np.float32)
    on_the_way = [(1 - share) * X[:100] + share * noise for share in (0, 0.25, 0.5, 0.75, 1)]
    familiarity = [classifier.score_samples(images).mean() for images in on_the_way]
    assert (np.diff(familiarity) < 0).all()


def test_noise_mends_what_temperature_cannot_in_the_over_confident_minilm(shared):
    path = shared / "models" / "minilm-movie-reviews"
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32)
    data = fetch_movie_reviews(shared / "data")
    X, y = data.text[data.calibration], data.target[data.calibration]
    tokenizer = AutoTokenizer.from_pretrained(path)
    wrapped = TransformerClassifier(model, preprocessor=tokenizer).fit(X[:32], y[:32])
    classifier = DiffusionCalibratedClassifier(
        FrozenEstimator(wrapped), transition="blockwise", inference="moments", random_state=0
    )
    # Half of the held-out texts calibrate, a part of the others judges.
    classifier.fit(
        data.text[data.train[:300]],
        data.target[data.train[:300]],
        X_calibration=X[:700],
        y_calibration=y[:700],
    )
    X, y = X[700:1200], y[700:1200]
    moments = classifier.predict_proba(X)
    temperature = classifier.set_params(inference="mean").predict_proba(X)
    assert 1.8 < classifier.temperature_ < 3
    np.testing.assert_array_equal(moments.argmax(1), temperature.argmax(1))
    assert log_loss(y, moments) < log_loss(y, temperature)
    assert expected_calibration_error(y, moments) < expected_calibration_error(
        y, wrapped.predict_proba(X)
    )


def test_the_minilm_answers_the_same_inside_of_data_parallel(shared):
    path = shared / "models" / "minilm-movie-reviews"
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path)
    praise = ["wonderful", "moving and funny", "a joy", "brilliant", "superb"]
    blame = ["dreadful", "dull and empty", "a waste of time", "terrible", "a bore"]
    texts = [f"{what} {word}." for what in ("This film is", "It was") for word in praise + blame]
    y = np.tile(np.repeat([1, 0], 5), 2)
    wrapped = torch.nn.DataParallel(model)
    classifier = TransformerClassifier(wrapped, preprocessor=tokenizer, device="cpu").fit(texts, y)
    assert classifier.score(texts, y) == 1.0
    with torch.no_grad():
        own = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]
    expected = torch.stack(own).double().softmax(1).numpy()
    np.testing.assert_allclose(classifier.predict_proba(texts), expected, atol=1e-5)
