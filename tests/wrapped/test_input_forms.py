"""The same samples in another form have the same answers."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
import transformers
from PIL import Image
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import make_pipeline
from tiny_models import WORDS, make_bert, make_images, make_texts, make_tokenizer, make_vit
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from sklearn_diffuq import DiffusionCalibratedClassifier, TransformerClassifier

pytestmark = pytest.mark.filterwarnings("ignore::sklearn_diffuq.exceptions.CalibrationWarning")

TEXTS, Y = make_texts(40, longest=12)
WORD = np.random.default_rng(1).choice(WORDS[4:], size=40).tolist()
PAIRS = list(zip(TEXTS, WORD, strict=True))


def text_classifier(**kwargs):
    return TransformerClassifier(
        make_bert(**kwargs), preprocessor=make_tokenizer(pair=True), device="cpu"
    )


def blockwise(estimator, **kwargs):
    return DiffusionCalibratedClassifier(
        estimator, transition="blockwise", device="cpu", random_state=0, **kwargs
    )


# -- text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form",
    [
        lambda texts: np.array(texts, dtype=object)[:, None],
        lambda texts: np.array(texts)[:, None],
        lambda texts: pd.DataFrame({"text": texts}),
        lambda texts: pl.DataFrame({"text": texts}),
        lambda texts: pl.Series(texts),
        lambda texts: tuple(texts),
    ],
)
def test_a_column_of_text_is_text(form):
    clf = text_classifier().fit(TEXTS, Y)
    np.testing.assert_array_equal(clf.predict_proba(form(TEXTS)), clf.predict_proba(TEXTS))


def test_text_from_a_column_transformer():
    frame = pd.DataFrame({"text": TEXTS, "n": np.arange(40)})
    column = ColumnTransformer([("text", "passthrough", ["text"])], remainder="drop")
    found = make_pipeline(column, text_classifier()).fit(frame, Y).predict_proba(frame)
    np.testing.assert_array_equal(found, text_classifier().fit(TEXTS, Y).predict_proba(TEXTS))


@pytest.mark.parametrize(
    "form",
    [
        lambda pairs: pairs,
        lambda pairs: [list(pair) for pair in pairs],
        lambda pairs: np.array(pairs, dtype=object),
        lambda pairs: pd.DataFrame(pairs, columns=["a", "b"]),
        lambda pairs: pl.DataFrame(pairs, schema=["a", "b"], orient="row"),
    ],
)
def test_pairs_of_text_are_read_as_the_tokenizer_pairs_them(form):
    clf = text_classifier().fit(form(PAIRS), Y)
    found = clf.decision_function(form(PAIRS))
    tokenizer = make_tokenizer(pair=True)
    for i in range(5):
        encoded = tokenizer(*PAIRS[i], truncation=True, max_length=40, return_tensors="pt")
        assert encoded["token_type_ids"].sum() > 0
        with torch.no_grad():
            z = clf.module_(**encoded).logits[0]
        assert found[i] == pytest.approx((z[1] - z[0]).item(), abs=1e-5)


def test_pairs_among_texts_are_named():
    clf = text_classifier().fit(TEXTS, Y)
    with pytest.raises(TypeError, match=r"row 2 is 'bad'.*a pair in every row"):
        clf.predict([*PAIRS[:2], "bad"])
    with pytest.raises(TypeError, match=r"row 1 is \('good', 'film'\)"):
        clf.predict(["bad", ("good", "film")])
    with pytest.raises(TypeError, match="row 1 is 3 of type int"):
        clf.predict([PAIRS[0], ("bad", 3)])


@pytest.mark.parametrize("empty", [[], (), np.array([], dtype=object), pd.Series([], dtype=object)])
def test_no_sample_at_all(empty):
    clf = blockwise(make_bert(), preprocessor=make_tokenizer()).fit(TEXTS, Y)
    images = TransformerClassifier(make_vit(), device="cpu").fit(*make_images())
    for fitted in (clf, clf.wrapped_, images):
        with pytest.raises(ValueError, match=r"^Found array with 0 sample\(s\).*minimum of 1"):
            fitted.predict(empty)
    with pytest.raises(ValueError, match=r"^Found array with 0 sample\(s\)"):
        blockwise(make_bert(), preprocessor=make_tokenizer()).fit(empty, [])


@pytest.mark.parametrize("missing", [None, np.nan])
def test_a_first_text_that_is_missing_is_named(missing):
    clf = text_classifier().fit(TEXTS, Y)
    with pytest.raises(TypeError, match="row 0 is (None|nan) .*Fill missing texts"):
        clf.predict(pd.Series([missing, *TEXTS[1:]], dtype=object))


def test_one_path_is_no_collection(tmp_path):
    clf = TransformerClassifier(make_vit(), preprocessor=as_pixels, device="cpu")
    clf.fit(*make_images())
    for one in (tmp_path / "a.png", str(tmp_path / "a.png")):
        with pytest.raises(TypeError, match=r"Got one .*Use `\["):
            clf.predict(one)


# -- images ---------------------------------------------------------------------------------------


def as_pixels(image):
    array = np.asarray(image, dtype=np.float32) / 255
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


@pytest.fixture
def files(tmp_path):
    X, y = make_images()
    images = [Image.fromarray((255 * x).astype(np.uint8)).convert("RGB") for x in X]
    paths = [tmp_path / f"{i}.png" for i in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    return paths, images, y


@pytest.mark.parametrize(
    "form",
    [
        list,
        lambda paths: [str(path) for path in paths],
        lambda paths: np.array([str(path) for path in paths]),
        lambda paths: np.array(paths, dtype=object),
        lambda paths: pd.DataFrame({"file": [str(path) for path in paths]}),
    ],
)
def test_names_of_files_are_opened(files, form):
    paths, images, y = files
    clf = TransformerClassifier(make_vit(in_chans=3), preprocessor=as_pixels, device="cpu")
    expected = clf.fit(images, y).predict_proba(images)
    np.testing.assert_array_equal(clf.fit(form(paths), y).predict_proba(form(paths)), expected)


def test_files_are_opened_with_the_channels_of_the_model(files):
    paths, images, y = files
    images[3].convert("L").save(paths[3])
    clf = TransformerClassifier(make_vit(in_chans=3), preprocessor=as_pixels, device="cpu")
    clf.fit(paths, y)
    np.testing.assert_array_equal(clf.predict_proba(paths), clf.predict_proba(images))
    grey = TransformerClassifier(make_vit(in_chans=1), preprocessor=as_pixels, device="cpu")
    grey.fit(paths, y)
    expected = grey.predict_proba([image.convert("L") for image in images])
    np.testing.assert_array_equal(grey.predict_proba(paths), expected)


def test_files_are_split_and_calibrated(files):
    paths, images, y = files
    y = y % 2
    clf = blockwise(make_vit(2, in_chans=3), preprocessor=as_pixels)
    expected = clf.fit(images, y).predict_proba(images)
    np.testing.assert_array_equal(clf.fit(paths, y).predict_proba(paths), expected)


def test_a_file_that_is_missing_or_no_image_is_named(files, tmp_path):
    paths, _, y = files
    clf = TransformerClassifier(make_vit(in_chans=3), preprocessor=as_pixels, device="cpu")
    clf.fit(paths, y)
    with pytest.raises(ValueError, match=r"1 row\(s\) of X.*: 2\. .*no file '.*none\.png'"):
        clf.predict([*paths[:2], tmp_path / "none.png"])
    paths[5].write_text("no image")
    with pytest.raises(ValueError, match=r"row\(s\) of X, counted from 0: 5\. .*cannot identify"):
        clf.predict(paths)
    for names in (paths, list(map(str, paths))):
        with pytest.raises(ValueError, match="for names of image files, what makes pixels"):
            TransformerClassifier(make_vit(in_chans=3), device="cpu").fit(names, y)


@pytest.mark.parametrize("change", [lambda i: i.convert("L"), lambda i: i.resize((9, 8))])
def test_an_image_unlike_the_others_is_named(files, change):
    _, images, y = files
    clf = TransformerClassifier(make_vit(in_chans=3), preprocessor=as_pixels, device="cpu")
    clf.fit(images, y)
    images[7] = change(images[7])
    message = r"Unreadable images in 1 row\(s\) of X, counted from 0: 7\. .*pixels of shape"
    with pytest.raises(ValueError, match=message):
        clf.predict(images)
    with pytest.raises(ValueError, match=message):
        blockwise(make_vit(in_chans=3), preprocessor=as_pixels).fit(images * 5, np.tile(y, 5))
    arrays = [np.asarray(image) for image in images]
    with pytest.raises(ValueError, match=r"row\(s\) of X, counted from 0: 7\. .*of row 0"):
        TransformerClassifier(make_vit(in_chans=3), device="cpu").fit(arrays, y)


def test_an_image_that_the_preprocessor_refuses_is_named():
    X, y = make_images()
    images = [Image.fromarray((255 * x).astype(np.uint8)).convert("RGB") for x in X]
    processor = transformers.ViTImageProcessor(size={"height": 8, "width": 8})
    clf = TransformerClassifier(make_vit(in_chans=3), preprocessor=processor, device="cpu")
    clf.fit(images, y)
    images[4] = images[4].convert("L")
    with pytest.raises(ValueError, match=r"X, counted from 0: 4\. The preprocessor cannot read"):
        clf.predict(images)
    converting = transformers.ViTImageProcessor(size={"height": 8, "width": 8}, do_convert_rgb=True)
    clf = TransformerClassifier(make_vit(in_chans=3), preprocessor=converting, device="cpu")
    assert np.isfinite(clf.fit(images, y).predict_proba(images)).all()


def dinov2(**kwargs):
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, mlp_ratio=2, image_size=28,
        patch_size=7, num_labels=2, **kwargs,
    )  # fmt: skip
    return transformers.Dinov2ForImageClassification(config).eval()


@pytest.mark.parametrize("size", [(14, 14), (42, 28)])
def test_models_of_free_size_take_the_size_of_the_data(size):
    model, y = dinov2(), np.arange(60) % 2
    X = np.random.default_rng(0).normal(size=(60, 3, *size)).astype(np.float32)
    clf = blockwise(model, inference="mean").fit(X, y)
    with torch.no_grad():
        logits = model(torch.as_tensor(X)).logits
    expected = torch.softmax(logits.double() / clf.temperature_, 1)
    np.testing.assert_allclose(clf.predict_proba(X), expected, atol=1e-5)
    clf.predict_proba(np.zeros((2, 3, 28, 28)))


def test_models_of_one_size_refuse_others():
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=28, patch_size=7, num_labels=2,
    )  # fmt: skip
    model, y = transformers.ViTForImageClassification(config), np.arange(6) % 2
    message = r"shape \(3, 14, 14\), but the model expects \(3, 28, 28\)"
    with pytest.raises(ValueError, match=message):
        TransformerClassifier(model, device="cpu").fit(np.zeros((6, 3, 14, 14)), y)
    clf = TransformerClassifier(model, device="cpu").fit(np.zeros((6, 3, 28, 28)), y)
    with pytest.raises(ValueError, match=message):
        clf.predict(np.zeros((6, 3, 14, 14)))


# -- data sets ------------------------------------------------------------------------------------


class Items(Dataset):
    def __init__(self, *columns):
        self.items = list(zip(*columns, strict=True)) if len(columns) > 1 else list(columns[0])

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


class FakeHub:
    """What the package reads of a Hugging Face data set."""

    def __init__(self, **columns):
        self.columns, self.features = columns, dict.fromkeys(columns)
        self.column_names = list(columns)

    def __len__(self):
        return len(self.columns[self.column_names[0]])

    def __getitem__(self, i):
        if isinstance(i, str):
            return self.columns[i]
        return {name: values[i] for name, values in self.columns.items()}


def calibrated(X, y=None, estimator=None, **kwargs):
    model = make_bert() if estimator is None else estimator
    preprocessor = make_tokenizer(pair=True) if estimator is None else None
    return blockwise(model, preprocessor=preprocessor).fit(X, y, **kwargs)


IDS = [
    {"input_ids": torch.as_tensor(ids), "token_type_ids": torch.zeros(len(ids), dtype=torch.long)}
    for ids in make_tokenizer()(TEXTS)["input_ids"]
]
TEXT_SETS = {
    "torch (x, y)": Items(TEXTS, Y),
    "torch dicts": Items([{**row, "labels": int(y)} for row, y in zip(IDS, Y, strict=True)]),
    "hub": FakeHub(text=TEXTS, label=Y.tolist()),
    "hub, tokenized": FakeHub(
        text=TEXTS,
        label=Y.tolist(),
        input_ids=[row["input_ids"].tolist() for row in IDS],
        token_type_ids=[row["token_type_ids"].tolist() for row in IDS],
    ),
}


@pytest.mark.parametrize("kind", list(TEXT_SETS))
def test_data_sets_of_text(kind):
    dataset = TEXT_SETS[kind]
    expected = calibrated(TEXTS, Y)
    found = calibrated(dataset)
    np.testing.assert_array_equal(found.predict_proba(dataset), expected.predict_proba(TEXTS))
    np.testing.assert_array_equal(found.score_samples(dataset), expected.score_samples(TEXTS))
    given = calibrated(dataset, Y[:], X_calibration=dataset, y_calibration=Y)
    taken = calibrated(dataset, X_calibration=dataset)
    np.testing.assert_array_equal(given.predict_proba(TEXTS), taken.predict_proba(TEXTS))


def test_data_sets_of_text_without_labels_and_of_pairs():
    expected = calibrated(TEXTS, Y).predict_proba(TEXTS)
    np.testing.assert_array_equal(calibrated(Items(TEXTS), Y).predict_proba(Items(TEXTS)), expected)
    expected = calibrated(PAIRS, Y).predict_proba(PAIRS)
    for dataset in (Items(PAIRS, Y), FakeHub(sentence1=TEXTS, sentence2=WORD, label=Y)):
        np.testing.assert_array_equal(calibrated(dataset).predict_proba(dataset), expected)
    bare = Items(PAIRS)  # two texts are a pair, not a text and its label
    np.testing.assert_array_equal(calibrated(bare, Y).predict_proba(bare), expected)


def test_data_sets_of_images_and_tables():
    X, y = make_images()
    y = y % 2
    tensors = torch.as_tensor(X, dtype=torch.float32)
    expected = calibrated(X, y, make_vit(2)).predict_proba(X)
    for dataset in (TensorDataset(tensors[:, None], torch.as_tensor(y)), Items(tensors, y)):
        found = calibrated(dataset, estimator=make_vit(2)).predict_proba(dataset)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    images = [Image.fromarray((255 * x).astype(np.uint8)) for x in X]
    hub = FakeHub(image=images, label=y, name=["x"] * len(y))
    clf = TransformerClassifier(make_vit(2), preprocessor=as_pixels, device="cpu")
    np.testing.assert_array_equal(clf.fit(hub).predict(hub), clf.fit(images, y).predict(images))
    table = DiffusionCalibratedClassifier(device="cpu", random_state=0, transition="blockwise")
    rows, labels = X.reshape(len(X), -1), y
    rows = rows[:, rows.std(0) > 0][:, 20:24]
    dataset = TensorDataset(torch.as_tensor(rows), torch.as_tensor(labels))
    expected = table.fit(rows, labels).predict_proba(rows)
    np.testing.assert_array_equal(table.fit(dataset).predict_proba(dataset), expected)
    for bare in (TensorDataset(torch.as_tensor(rows)), Items(rows)):
        np.testing.assert_array_equal(table.predict_proba(bare), expected)
    table.fit(rows[:, :2], labels)
    two = Items([tuple(row) for row in rows[:, :2].tolist()])  # two numbers are a row
    np.testing.assert_array_equal(table.predict_proba(two), table.predict_proba(rows[:, :2]))
    with pytest.raises(TypeError, match="tuples of 3"):
        table.predict(Items(rows, labels, labels))


def test_data_sets_that_cannot_be_read():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(TEXTS)

    with pytest.raises(TypeError, match="Stream has no length"):
        text_classifier().fit(Stream(), Y)
    with pytest.raises(ValueError, match=r"columns \['a', 'b', 'c'\].*select_columns"):
        text_classifier().fit(FakeHub(a=TEXTS, b=TEXTS, c=TEXTS, label=Y))
    with pytest.raises(ValueError, match="requires y to be passed"):
        text_classifier().fit(FakeHub(text=TEXTS))


def test_hugging_face_data_sets():
    datasets = pytest.importorskip("datasets.arrow_dataset")  # there is a folder of tests

    def dataset_of(columns):
        table = datasets.InMemoryTable.from_pydict(columns)
        return datasets.Dataset(table, fingerprint="test")  # without pickling

    dataset = dataset_of({"text": TEXTS, "label": Y.tolist()})
    clf = text_classifier().fit(TEXTS, Y)
    expected = clf.predict_proba(TEXTS)
    found = text_classifier().fit(dataset)
    np.testing.assert_array_equal(found.predict_proba(dataset), expected)
    np.testing.assert_array_equal(found.predict_proba(dataset["text"]), expected)
    ids = dataset_of(dict(make_tokenizer()(TEXTS)) | {"label": Y.tolist()})
    np.testing.assert_array_equal(found.predict_proba(ids), expected)
    np.testing.assert_array_equal(found.predict_proba(ids.with_format("torch")), expected)


# -- pipelines ------------------------------------------------------------------------------------


def test_a_hugging_face_pipeline_brings_model_and_tokenizer(tmp_path):
    pipe = transformers.pipeline(
        "text-classification", model=make_bert(), tokenizer=make_tokenizer(), device="cpu"
    )
    expected = calibrated(TEXTS, Y)
    found = blockwise(pipe).fit(TEXTS, Y)
    assert found.wrapped_.module_ is pipe.model
    np.testing.assert_array_equal(found.predict_proba(TEXTS), expected.predict_proba(TEXTS))
    found.save(tmp_path / "saved")
    loaded = DiffusionCalibratedClassifier.load(tmp_path / "saved", estimator=pipe)
    np.testing.assert_array_equal(loaded.predict_proba(TEXTS), expected.predict_proba(TEXTS))


def test_a_hugging_face_pipeline_of_images():
    X, y = np.random.default_rng(0).integers(0, 255, (10, 28, 28, 3), np.uint8), np.arange(10) % 2
    processor = transformers.ViTImageProcessor(size={"height": 28, "width": 28})
    pipe = transformers.pipeline(
        "image-classification", model=dinov2(), image_processor=processor, device="cpu"
    )
    images = [Image.fromarray(x) for x in X]
    found = TransformerClassifier(pipe, device="cpu").fit(images, y).predict_proba(images)
    for row, image in zip(found, images, strict=True):
        scores = {score["label"]: score["score"] for score in pipe(image)}
        np.testing.assert_allclose(row, [scores["LABEL_0"], scores["LABEL_1"]], atol=1e-5)
