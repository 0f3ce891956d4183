"""A model inside of another module answers as it does on its own."""

import numpy as np
import pytest
import tiny_models
import torch
from scipy.special import softmax
from torch import nn

from sklearn_diffuq import TransformerClassifier


class OwnNames(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, ids, mask, segments):
        return self.module(ids, mask, segments).logits


@pytest.fixture
def bert():
    model = tiny_models.make_bert()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


@pytest.fixture
def pairs():
    """A mapping with padding and two segments, in the order of BERT's own parameters."""
    rng = np.random.default_rng(0)
    mask = np.arange(12) < rng.integers(4, 12, size=(20, 1))
    ids = np.where(mask, rng.integers(4, 11, size=mask.shape), 0)
    return {
        "input_ids": ids,
        "attention_mask": mask.astype(int),
        "token_type_ids": (mask & (np.arange(12) > 2)).astype(int),
    }


Y = np.arange(20) % 2


def own_probabilities(model, X):
    with torch.no_grad():
        output = model(**{name: torch.from_numpy(np.asarray(value)) for name, value in X.items()})
    return softmax(output.logits.numpy(), axis=1)


def fit(model, X, **options):
    return TransformerClassifier(model, device="cpu", **options).fit(X, Y)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [0, 2, 1]])
def test_a_mapping_in_any_order_goes_by_name(bert, pairs, order):
    names = np.array(list(pairs))[order]
    X = {name: pairs[name] for name in names}
    clf = fit(nn.DataParallel(bert), X)
    np.testing.assert_allclose(clf.predict_proba(X), own_probabilities(bert, pairs), atol=1e-6)


def test_the_order_of_fit_holds_for_predictions(bert, pairs):
    clf = fit(OwnNames(bert), pairs)
    expected = own_probabilities(bert, pairs)
    np.testing.assert_allclose(clf.predict_proba(pairs), expected, atol=1e-6)
    other_order = dict(reversed(pairs.items()))
    assert np.array_equal(clf.predict_proba(other_order), clf.predict_proba(pairs))
    loaded = TransformerClassifier.from_state(clf.to_state(), clf.classes_, model=clf.model)
    assert np.array_equal(loaded.predict_proba(other_order), clf.predict_proba(pairs))
    with pytest.raises(ValueError, match="fitted with input_ids, attention_mask, token_type_ids"):
        clf.predict(dict(zip("abc", pairs.values())))
    renamed = dict(zip(["ids", "mask", "segments"], pairs.values()))
    np.testing.assert_allclose(
        fit(OwnNames(bert), renamed).predict_proba(renamed), expected, atol=1e-6
    )


def test_an_order_that_is_not_the_users_is_refused(bert, pairs):
    names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer = tiny_models.make_tokenizer(model_input_names=names)
    with pytest.raises(ValueError, match="OwnNames.forward.ids, mask, segments. gets the inputs"):
        fit(OwnNames(bert), tiny_models.make_texts(20)[0], preprocessor=tokenizer)
    del pairs["attention_mask"]  # the package adds one at the end
    with pytest.raises(ValueError, match="gets the inputs input_ids, token_type_ids, attention"):
        fit(OwnNames(bert), pairs)


def test_names_of_classes_and_limits_are_found_inside(bert):
    bert.config.id2label = {0: "good", 1: "bad"}
    texts, y = tiny_models.make_texts(20)
    labels = np.array(["bad", "good"])[y]
    options = dict(preprocessor=tiny_models.make_tokenizer(), device="cpu")
    clf = TransformerClassifier(nn.DataParallel(bert), **options).fit(texts, labels)
    expected = TransformerClassifier(bert, **options).fit(texts, labels)
    assert clf.backbone_.columns == [1, 0]
    assert np.array_equal(clf.predict_proba(texts), expected.predict_proba(texts))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's
@pytest.mark.parametrize("base_head", [False, True])
def test_an_adapter_directory_is_a_model(tmp_path, bert, pairs, base_head):
    peft = pytest.importorskip("peft")
    base, adapter = str(tmp_path / "base"), str(tmp_path / "adapter")
    (bert if base_head else bert.bert).save_pretrained(base)
    tokenizer = tiny_models.make_tokenizer()
    tokenizer.save_pretrained(base)
    n_labels = 2 if base_head else 3
    fresh = type(bert).from_pretrained(base, num_labels=n_labels)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
    adapted = peft.get_peft_model(fresh, config).eval()
    for name, parameter in adapted.named_parameters():
        if "lora" in name:
            nn.init.normal_(parameter)
    adapted.save_pretrained(adapter)
    expected = own_probabilities(adapted, pairs)
    clf = TransformerClassifier(adapter, device="cpu").fit(pairs, np.arange(20) % n_labels)
    np.testing.assert_allclose(clf.predict_proba(pairs), expected, atol=1e-6)
    texts = ["good film", "bad plot a"] * 10
    assert clf.predict_proba(texts).shape == (20, n_labels)
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    weights.rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(ValueError, match="without adapter_model.safetensors"):
        fit(adapter, pairs)
