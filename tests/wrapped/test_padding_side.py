"""Values per token and the side of padding: a model answers as for each row on its own."""

import numpy as np
import pytest
import tiny_models
import torch
import transformers
from scipy.special import softmax
from torch import nn

from sklearn_diffuq import TransformerClassifier
from sklearn_diffuq.exceptions import BackboneError

Y = np.arange(16) % 2


class Valued(nn.Module):
    """Adds a value and a box per token to its embedding."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.value, self.box = nn.Embedding(20, 8), nn.Linear(1, 8), nn.Linear(4, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.head = nn.Linear(8, 2)

    def forward(self, input_ids, attention_mask, values, bbox):
        h = self.embedding(input_ids) + 5 * self.value(values[..., None]) + self.box(bbox)
        for layer in self.layers:
            h = layer(h)
        real = attention_mask[..., None]
        return self.head((h * real).sum(1) / real.sum(1))


def test_values_and_boxes_per_token_arrive():
    rng = np.random.default_rng(0)
    mask = np.arange(9) < rng.integers(2, 10, size=(16, 1))
    X = {
        "input_ids": np.where(mask, rng.integers(1, 20, size=mask.shape), 0),
        "attention_mask": mask.astype(int),
        "values": np.where(mask, rng.random(mask.shape), 0).astype(np.float32),
        "bbox": np.where(mask[..., None], rng.random((16, 9, 4)), 0).astype(np.float32),
    }
    model = Valued().eval()
    with torch.no_grad():
        expected = softmax(model(**{k: torch.from_numpy(v) for k, v in X.items()}).numpy(), axis=1)
    clf = TransformerClassifier(model, device="cpu").fit(X, Y)
    np.testing.assert_allclose(clf.predict_proba(X), expected, atol=1e-6)


class LastToken(nn.Module):
    """Reads the last place of a decoder, which is padding unless that is on the left."""

    def __init__(self, body):
        super().__init__()
        self.body, self.head = body, nn.Linear(16, 2)
        nn.init.normal_(self.head.weight)

    def forward(self, input_ids, attention_mask):
        output = self.body(input_ids, attention_mask=attention_mask)
        return self.head(output.last_hidden_state[:, -1])


SMALL = dict(
    vocab_size=11, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
)


def decoder():
    torch.manual_seed(0)
    config = transformers.Qwen2Config(**SMALL, num_key_value_heads=1, pad_token_id=0)
    body = transformers.Qwen2Model(config)
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.mul_(5 if parameter.ndim == 2 else 1)
    return LastToken(body).eval()


def alone(model, texts, tokenizer):
    with torch.no_grad():
        logits = [model(**tokenizer([text], return_tensors="pt"))[0] for text in texts]
    return softmax(torch.stack(logits).numpy(), axis=1)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("given", ["texts", "mapping"])
def test_a_head_on_the_last_place_gets_its_padding_on_the_left(side, given):
    model, (texts, y) = decoder(), tiny_models.make_texts(20, longest=20)
    options = {"padding_side": side, "model_input_names": ["input_ids", "attention_mask"]}
    tokenizer = tiny_models.make_tokenizer(**options)
    X = texts if given == "texts" else dict(tokenizer(texts, padding=True))
    preprocessor = tokenizer if given == "texts" else None
    clf = TransformerClassifier(model, preprocessor=preprocessor, device="cpu").fit(X, y)
    expected = alone(model, texts, tokenizer)
    np.testing.assert_allclose(clf.predict_proba(X), expected, atol=1e-5)
    few = texts[3:4] if given == "texts" else dict(tokenizer(texts[3:4]))
    assert np.array_equal(clf.predict_proba(few), clf.predict_proba(X)[3:4])
    loaded = TransformerClassifier.from_state(
        clf.to_state(), clf.classes_, model=model, preprocessor=preprocessor
    )
    assert np.array_equal(loaded.predict_proba(X), clf.predict_proba(X))


def test_positions_that_count_from_the_left_keep_padding_on_the_right():
    tokenizer = tiny_models.make_tokenizer(padding_side="left")
    model, (texts, y) = tiny_models.make_bert(), tiny_models.make_texts(20)
    clf = TransformerClassifier(model, preprocessor=tokenizer, device="cpu").fit(texts, y)
    right = TransformerClassifier(model, preprocessor=tiny_models.make_tokenizer(), device="cpu")
    assert np.array_equal(clf.predict_proba(texts), right.fit(texts, y).predict_proba(texts))


class MeanOfAll(LastToken):
    def forward(self, input_ids, attention_mask):
        output = self.body(input_ids, attention_mask=attention_mask)
        return self.head(output.last_hidden_state.mean(1))


def test_a_model_that_reads_padding_is_refused():
    model, (texts, y) = MeanOfAll(decoder().body).eval(), tiny_models.make_texts(20)
    tokenizer = tiny_models.make_tokenizer(model_input_names=["input_ids", "attention_mask"])
    with pytest.raises(BackboneError, match="MeanOfAll answers a text in one way alone"):
        TransformerClassifier(model, preprocessor=tokenizer, device="cpu").fit(texts, y)
