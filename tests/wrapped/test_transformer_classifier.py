import copy
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from PIL import Image
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import make_blobs
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.utils import get_tags
from skorch.helper import SliceDict
from tiny_models import WORDS, make_bert, make_images, make_texts, make_tokenizer, make_vit
from torch import nn

from sklearn_diffuq import TransformerClassifier
from sklearn_diffuq._backbones.ft_transformer import FTTransformer
from sklearn_diffuq.exceptions import BackboneError, ReadoutWarning


def text_classifier(model=None, **kwargs):
    options = {"preprocessor": make_tokenizer(), "device": "cpu"} | kwargs
    return TransformerClassifier(make_bert() if model is None else model, **options)


def state_of(model):
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    return tensors, flags, [p.requires_grad for p in model.parameters()], dict(vars(model))


def assert_unchanged(model, before):
    tensors, flags, grads, attributes = state_of(model)
    assert all(torch.equal(tensors[name], value) for name, value in before[0].items())
    assert (flags, grads, attributes.keys()) == (before[1], before[2], before[3].keys())


# -- predictions are the model's own --------------------------------------------------------------


def test_text_predictions_are_the_models_and_the_model_is_shared_untouched():
    texts, y = make_texts()
    model = make_bert().train()
    before = state_of(model)
    clf = text_classifier(model).fit(texts, y)
    assert clf.module_ is model
    logits = clf.decision_function(texts)
    assert_unchanged(model, before)
    tokenizer = make_tokenizer()
    model.eval()
    for i, text in enumerate(texts):
        encoded = tokenizer(text, truncation=True, max_length=40, return_tensors="pt")
        z = model(**encoded).logits[0].double()
        assert logits[i] == pytest.approx((z[1] - z[0]).item(), abs=1e-5)


def test_image_predictions_are_the_models():
    X, y = make_images()
    model = make_vit()
    clf = TransformerClassifier(model, device="cpu").fit(X, y)
    with torch.no_grad():
        logits = model(torch.as_tensor(X, dtype=torch.float32)[:, None])
    np.testing.assert_allclose(clf.decision_function(X), logits, atol=1e-5)
    for same in (X[:, None], X[..., None], torch.from_numpy(X), list(X)):
        assert (clf.decision_function(same) == clf.decision_function(X)).all()


def test_table_predictions_are_the_modules():
    X, y = make_blobs(30, n_features=3, centers=4, random_state=0)
    model = FTTransformer(3, [], 4, width=8, n_heads=2).eval()
    clf = TransformerClassifier(model, device="cpu").fit(X, y)
    logits = model(torch.as_tensor(X, dtype=torch.float32)).detach()
    np.testing.assert_allclose(clf.decision_function(X), logits, atol=1e-5)
    assert clf.n_features_in_ == 3
    with pytest.raises(ValueError, match="X has 2 features"):
        clf.predict(X[:, :2])


KINDS = {
    "text": lambda: (text_classifier(), *make_texts(100)),
    "images": lambda: (TransformerClassifier(make_vit(), device="cpu"), *make_images(100)),
    "refitted readout": lambda: (text_classifier(make_bert(head=False)), *make_texts(100)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::sklearn_diffuq.exceptions.ReadoutWarning")
def test_a_row_has_the_same_bits_alone_in_any_batch_and_in_any_order(kind):
    clf, X, y = KINDS[kind]()
    clf.fit(X, y)
    X = np.asarray(X)
    together = clf.decision_function(X)
    order = np.random.default_rng(0).permutation(len(X))
    assert (clf.decision_function(X[order]) == together[order]).all()
    for i in range(0, 100, 11):
        assert (clf.decision_function(X[i : i + 1]) == together[i]).all()
        assert (clf.decision_function(X[i : i + 5]) == together[i : i + 5]).all()


# -- classes and readout --------------------------------------------------------------------------


def test_named_classes_keep_their_logit():
    texts, y = make_texts()
    labels = np.array(["bad", "good"])[y]
    model = make_bert(id2label={0: "good", 1: "bad"}, label2id={"good": 0, "bad": 1})
    named = text_classifier(model).fit(texts, labels)
    numbered = text_classifier(model).fit(texts, y)
    assert named.classes_.tolist() == ["bad", "good"]
    assert (named.decision_function(texts) == -numbered.decision_function(texts)).all()


@pytest.mark.parametrize("dtype", ["Int64", "boolean", "float64", "bool[pyarrow]"])
def test_nullable_labels_match_names_as_plain_ones(dtype):
    if "pyarrow" in dtype:
        pytest.importorskip("pyarrow")
    texts, y = make_texts()
    names = {0: "True", 1: "False"} if "bool" in dtype else {0: "1", 1: "0"}
    model = make_bert(id2label=names, label2id={name: i for i, name in names.items()})
    clf = text_classifier(model).fit(texts, pd.Series(y).astype(dtype))
    assert clf.classes_.dtype.kind == {"I": "i", "b": "b", "f": "f"}[dtype[0]]
    by_number = text_classifier(make_bert()).fit(texts, y)
    assert (clf.decision_function(texts) == -by_number.decision_function(texts)).all()


def test_names_in_another_case_keep_their_logit_and_it_is_said():
    texts, y = make_texts()
    names = {0: "POSITIVE", 1: "NEGATIVE"}
    model = make_bert(id2label=names, label2id={"POSITIVE": 0, "NEGATIVE": 1})
    with pytest.warns(ReadoutWarning, match="'negative' as 'NEGATIVE'") as warned:
        clf = text_classifier(model).fit(texts, np.array(["negative", "positive"])[y])
    assert warned[0].filename == __file__
    assert clf.backbone_.custom_readout is None
    assert clf.backbone_.columns == [1, 0]


def test_the_first_outputs_of_a_large_head_are_not_taken_without_a_word():
    X, y = make_images(60)
    with pytest.warns(ReadoutWarning, match="30 outputs, but there are only 10 labels"):
        clf = TransformerClassifier(make_vit(30), device="cpu").fit(X, y)
    assert clf.backbone_.columns == list(range(10))


def test_logits_of_absent_classes_are_left_out():
    X, y = make_images(300)
    kept = np.isin(y, [2, 3, 7])
    everything = TransformerClassifier(make_vit(), device="cpu").fit(X, y).predict_proba(X)
    clf = TransformerClassifier(make_vit(), device="cpu").fit(X[kept], y[kept])
    assert clf.classes_.tolist() == [2, 3, 7]
    assert clf.backbone_.n_outputs == 3
    part = everything[:, [2, 3, 7]]
    np.testing.assert_allclose(clf.predict_proba(X), part / part.sum(1, keepdims=True), rtol=1e-6)


def test_a_head_of_one_logit_is_binary():
    texts, y = make_texts()
    model = make_bert(num_labels=1)
    clf = text_classifier(model).fit(texts, y)
    encoded = make_tokenizer()(texts[0], truncation=True, max_length=40, return_tensors="pt")
    with torch.no_grad():
        assert clf.decision_function(texts[:1])[0] == pytest.approx(
            model(**encoded).logits.item(), abs=1e-5
        )


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: make_bert(head=False), "BertModel has no head"),
        (lambda: make_bert(num_labels=5), "head of 5 output"),
    ],
)
def test_a_head_that_does_not_fit_is_replaced_with_a_warning(model, message):
    texts, y = make_texts(200, longest=5)
    model, labels = model(), np.array(["no", "yes"])[y]
    before = state_of(model)
    with pytest.warns(ReadoutWarning, match=message) as warned:
        clf = text_classifier(model).fit(texts[:150], labels[:150])
    assert warned[0].filename == __file__  # the line that called fit
    assert_unchanged(model, before)
    assert clf.module_ is model
    assert clf.classes_.tolist() == ["no", "yes"]
    assert clf.score(texts[150:], labels[150:]) > 0.85  # even random features know the words
    assert (pickle.loads(pickle.dumps(clf)).predict_proba(texts) == clf.predict_proba(texts)).all()


def test_rows_of_weight_zero_do_not_count_in_the_readout():
    texts, y = make_texts()
    weight = np.ones(60)
    weight[40:] = 0
    y_wrong = np.r_[y[:40], np.full(20, 2)]
    model = make_bert(head=False)
    with pytest.warns(ReadoutWarning):
        weighted = text_classifier(model).fit(texts, y_wrong, sample_weight=weight)
    with pytest.warns(ReadoutWarning):
        plain = text_classifier(model).fit(texts[:40], y[:40])
    assert weighted.classes_.tolist() == [0, 1]
    assert (weighted.predict_proba(texts) == plain.predict_proba(texts)).all()


# -- fine-tuning ----------------------------------------------------------------------------------


def test_finetuning_trains_a_copy_and_reproduces():
    texts, y = make_texts(200, longest=5)
    model = make_bert(hidden_dropout_prob=0.1)
    before = state_of(model)
    options = {"finetune": True, "lr": 3e-3, "max_epochs": 6, "batch_size": 8, "random_state": 0}
    global_state = torch.get_rng_state()
    clf = text_classifier(model, **options).fit(texts[:150], y[:150])
    assert torch.equal(torch.get_rng_state(), global_state)
    assert_unchanged(model, before)
    assert clf.module_ is not model
    assert clf.score(texts[150:], y[150:]) > 0.95
    assert len(clf.history_) == 6
    assert clf.history_[-1]["train_loss"] < 0.3 < clf.history_[0]["train_loss"]
    again = text_classifier(model, **options).fit(texts[:150], y[:150])
    assert (again.decision_function(texts) == clf.decision_function(texts)).all()


def test_finetuning_trains_a_new_readout_too():
    X, y = make_images(400)
    labels = np.where(y < 5, "low", "high")
    model = make_vit()
    with pytest.warns(ReadoutWarning):
        start = TransformerClassifier(model, device="cpu").fit(X, labels)
    with pytest.warns(ReadoutWarning):
        clf = TransformerClassifier(
            model, device="cpu", finetune=True, lr=2e-3, max_epochs=5, random_state=0
        ).fit(X, labels)
    readouts = [c.backbone_.custom_readout.weight for c in (start, clf)]
    assert not torch.equal(*readouts)
    assert clf.score(X, labels) > start.score(X, labels)
    assert clf.module_ is not model


# -- what X may be --------------------------------------------------------------------------------


def test_text_containers_and_token_mappings_agree():
    texts, y = make_texts()
    clf = text_classifier().fit(texts, y)
    expected = clf.decision_function(texts)
    encoded = make_tokenizer()(texts, truncation=True, max_length=40, padding=True)
    arrays = {name: np.array(value) for name, value in encoded.items()}
    for X in (
        tuple(texts),
        np.array(texts),
        np.array(texts, dtype=object),
        pd.Series(texts),
        pd.DataFrame({"text": texts}),
        encoded,
        {name: torch.tensor(value) for name, value in arrays.items()},
        SliceDict(**arrays),
    ):
        assert (clf.decision_function(X) == expected).all()
    assert (text_classifier().fit(encoded, y).decision_function(texts) == expected).all()


def test_long_texts_are_cut_where_the_model_or_the_user_says():
    texts, y = make_texts()
    long = [" ".join(["good"] * 100), " ".join(["good"] * 60)]
    clf = text_classifier().fit(texts, y)  # 40 positions
    assert clf.encode(long).lengths.tolist() == [40, 40]
    clf = text_classifier(max_length=10).fit(texts, y)
    assert clf.encode(long).lengths.tolist() == [10, 10]
    clf = text_classifier(preprocessor=make_tokenizer(model_max_length=20)).fit(texts, y)
    assert clf.encode(long).lengths.tolist() == [20, 20]


def test_roberta_positions_start_after_the_padding_index():
    config = transformers.RobertaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=34,
        pad_token_id=0,
    )
    model = transformers.RobertaForSequenceClassification(config)
    texts, y = make_texts()
    clf = text_classifier(model).fit(texts, y)
    assert clf.encode([" ".join(["good"] * 99)]).lengths[0] == 33
    assert clf.predict_proba([" ".join(["good"] * 99)]).shape == (1, 2)


def test_decoder_without_padding_token():
    config = transformers.GPT2Config(
        vocab_size=len(WORDS), n_embd=16, n_layer=2, n_head=2, n_positions=40, num_labels=2
    )
    texts, y = make_texts()
    tokenizer = make_tokenizer(pad_token=None, eos_token="[SEP]")
    model = transformers.GPT2ForSequenceClassification(config)
    with pytest.raises(ValueError, match="pad_token_id"):
        text_classifier(model, preprocessor=tokenizer).fit(texts, y)
    model.config.pad_token_id = 0
    clf = text_classifier(model, preprocessor=tokenizer).fit(texts, y)
    ids = tokenizer(texts[0], truncation=True, max_length=40, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        z = model.eval()(input_ids=ids).logits[0]
    assert clf.decision_function(texts[:1])[0] == pytest.approx((z[1] - z[0]).item(), abs=1e-5)


def test_pil_images_with_a_transform():
    X, y = make_images()
    images = [Image.fromarray((255 * x).astype(np.uint8)).resize((16, 16)) for x in X]

    def to_pixels(image):
        return np.asarray(image.resize((8, 8)), dtype=np.float32)[None] / 255

    clf = TransformerClassifier(make_vit(), preprocessor=to_pixels, device="cpu").fit(images, y)
    pixels = np.stack([to_pixels(image) for image in images])
    direct = TransformerClassifier(make_vit(), device="cpu").fit(pixels, y)
    assert (clf.decision_function(images) == direct.decision_function(pixels)).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: (text_classifier(preprocessor=None), *make_texts()), "there is no tokenizer"),
        (lambda: (text_classifier(), *make_images()), "reads text, but X is a ndarray of images"),
        (lambda: (text_classifier(), np.zeros((5, 2)), np.arange(5) % 2), "reads text"),
        (lambda: (text_classifier(), "one text", [0, 1]), "one str"),
        (
            lambda: (TransformerClassifier(make_vit(), device="cpu"), *make_texts()),
            "there is no tokenizer",
        ),
        (
            lambda: (
                TransformerClassifier(make_vit(), device="cpu"),
                np.zeros((5, 3, 8, 8)),
                range(5),
            ),
            r"shape .3, 8, 8., but the model expects .1, 8, 8.",
        ),
        (
            lambda: (
                TransformerClassifier(make_vit(), device="cpu"),
                np.zeros((5, 9, 9)),
                range(5),
            ),
            r"shape .1, 9, 9., but the model expects .1, 8, 8.",
        ),
        (
            lambda: (
                TransformerClassifier(make_vit(), device="cpu"),
                np.full((5, 8, 8), np.nan),
                range(5),
            ),
            "NaN",
        ),
        (lambda: (text_classifier(), ["a", "good"], [1, 1]), "at least two classes"),
        (lambda: (text_classifier(), ["a", "good"], [1, 0, 1]), "inconsistent numbers of samples"),
        (lambda: (TransformerClassifier("/no/such/dir"), ["a", "b"], [0, 1]), "/no/such/dir"),
    ],
)
def test_clear_errors(make, message):
    clf, X, y = make()
    with pytest.raises((ValueError, TypeError), match=message):
        clf.fit(X, list(y))


def test_dicts_cannot_be_split_but_slicedicts_can():
    texts, y = make_texts()
    encoded = dict(make_tokenizer()(texts, truncation=True, max_length=40, padding=True))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        cross_val_predict(text_classifier(), encoded, y, cv=2)
    sliced = SliceDict(**{name: np.array(value) for name, value in encoded.items()})
    assert len(cross_val_predict(text_classifier(), sliced, y, cv=2)) == 60


def test_models_without_blocks_are_refused():
    with pytest.raises(BackboneError, match="blocks"):
        TransformerClassifier(nn.Linear(2, 2), device="cpu").fit(np.zeros((4, 2)), [0, 1, 0, 1])
    with pytest.raises(BackboneError, match="nowhere"):
        text_classifier(blocks="nowhere").fit(*make_texts())


def test_unfitted_use():
    for method in ("predict", "predict_proba", "decision_function", "predict_log_proba", "encode"):
        with pytest.raises(NotFittedError):
            getattr(text_classifier(), method)(["a"])


# -- scikit-learn ---------------------------------------------------------------------------------


def test_tags_follow_the_model():
    text, image = get_tags(text_classifier()), get_tags(TransformerClassifier(make_vit()))
    assert text.input_tags.string
    assert not text.input_tags.two_d_array
    assert image.input_tags.three_d_array
    assert not image.input_tags.two_d_array
    table = get_tags(TransformerClassifier(FTTransformer(2, [], 2)))
    assert table.input_tags.two_d_array


def test_clones_pickles_searches_and_calibration():
    texts, y = make_texts(120, longest=5)
    clf = text_classifier(finetune=True, lr=3e-3, max_epochs=12, batch_size=6, random_state=0)
    fitted = clone(clf).fit(texts, y)
    assert not hasattr(clf, "module_")
    loaded = pickle.loads(pickle.dumps(fitted))
    assert (loaded.predict_proba(texts) == fitted.predict_proba(texts)).all()
    assert (copy.deepcopy(fitted).predict(texts) == fitted.predict(texts)).all()
    search = GridSearchCV(clf, {"lr": [1e-9, 3e-3]}, cv=2, n_jobs=2).fit(texts, y)
    assert search.best_params_ == {"lr": 3e-3}
    calibrated = CalibratedClassifierCV(clf, method="temperature", cv=2).fit(texts, y)
    assert calibrated.score(texts, y) > 0.9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_on_another_device_is_copied():
    texts, y = make_texts()
    model = make_bert()
    clf = text_classifier(model, device="cuda").fit(texts, y)
    assert next(clf.module_.parameters()).is_cuda
    assert not next(model.parameters()).is_cuda
    on_cpu = text_classifier(model).fit(texts, y).decision_function(texts)
    np.testing.assert_allclose(clf.decision_function(texts), on_cpu, atol=1e-4)
    assert not next(clf.__getstate__()["module_"].parameters()).is_cuda


def test_directory_of_a_hugging_face_model(tmp_path):
    texts, y = make_texts()
    model = make_bert(id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1})
    model.half().save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    clf = TransformerClassifier(str(tmp_path), device="cpu").fit(
        texts, np.array(["bad", "good"])[y]
    )
    assert next(clf.module_.parameters()).dtype == torch.float32
    expected = text_classifier(model.float()).fit(texts, y)
    assert (clf.decision_function(texts) == expected.decision_function(texts)).all()
    with pytest.raises(ValueError, match=r"no config.json"):
        TransformerClassifier(str(tmp_path.parent), device="cpu").fit(texts, y)
    by_name = text_classifier(model, preprocessor=str(tmp_path)).fit(texts, y)
    assert (by_name.decision_function(texts) == expected.decision_function(texts)).all()


def test_fitting_a_matching_head_warns_about_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text_classifier().fit(*make_texts())
