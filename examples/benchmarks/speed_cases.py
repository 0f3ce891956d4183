"""The models whose speed is measured, and the samples they are given."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
from sklearn.frozen import FrozenEstimator

from sklearn_diffuq import FTTransformerClassifier, TransformerClassifier

N_WORDS = 1_000  # in the vocabulary of random texts
NARROW = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
# Labels are random where the weights are: time does not depend on them.


@dataclass(frozen=True, eq=False)
class Case:
    """A frozen classifier, and samples to fit on and to predict.

    Attributes
    ----------
    frozen : FrozenEstimator
    train, held_out : tuple of X and y
    X : samples to predict
    options : dict
        Of the diffusion.
    """

    frozen: FrozenEstimator
    train: tuple
    held_out: tuple
    X: object
    options: dict

    @property
    def wrapped(self):
        """The fitted classifier inside of the frozen one."""
        return self.frozen.estimator


@dataclass(frozen=True)
class Size:
    """Numbers of samples.

    Attributes
    ----------
    train, held_out, predict : int
    seconds : float, default=1.0
        For how long a prediction is repeated.
    fits : tuple of str
        What is fitted: "blockwise", and the unified transition with the named numbers of steps.
    is_fit_timed : bool, default=True
        Else "S = L" is left out and "S = L/2" has full rank and one epoch, to be ready sooner.
    """

    train: int
    held_out: int
    predict: int
    seconds: float = 1.0
    fits: tuple[str, ...] = ("blockwise", "S = L/2", "S = L")
    is_fit_timed: bool = True


@lru_cache(maxsize=1)  # its methods follow each other
def make(name, size, device):
    """Return the case of a name in `CASES`."""
    classifier, X, y, options = CASES[name](size.train + size.held_out + size.predict)
    classifier.set_params(device=device)
    ends = size.train, size.train + size.held_out
    train, held_out = ((X[start:stop], y[start:stop]) for start, stop in ((0, ends[0]), ends))
    options = {"batch_size": 128, "random_state": 0, "device": device, **options}
    frozen = FrozenEstimator(classifier.fit(*train))
    return Case(frozen, train, held_out, X[ends[1] :], options)


def _vit_fashion_mnist(n):
    import vision

    from sklearn_diffuq.datasets import fetch_fashion_mnist

    data = fetch_fashion_mnist(normalize=True)
    classifier = TransformerClassifier(vision.load_model())
    return classifier, data.X_test[:n], data.y_test[:n], {"rank": 22}


def _minilm_movies(n):
    import text

    from sklearn_diffuq.datasets import fetch_movie_reviews

    data = fetch_movie_reviews()
    return text.load_classifier(), data.text[:n], data.target[:n], {"rank": 64}


def _minilm_clinc150(n):
    import gzip
    import json
    from pathlib import Path

    from harness import model_path
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    path = model_path("minilm-clinc150")
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32)
    classifier = TransformerClassifier(model, preprocessor=AutoTokenizer.from_pretrained(path))
    source = Path(os.environ["SKLEARN_DIFFUQ_DATA"]) / "clinc150" / "data_full.json.gz"
    with gzip.open(source, "rt", encoding="utf-8") as file:
        # sorted by intent in the file; all have to be among the training rows
        rows = sorted(json.load(file)["train"], key=lambda row: hash_of(row[0]))
    X, y = (np.array(column, dtype=object) for column in zip(*rows, strict=True))
    return classifier, X[:n], y[:n], {"rank": 64}


def hash_of(text):
    """Return a number by which texts are shuffled, the same in every process."""
    import zlib

    return zlib.crc32(text.encode())


def _vit(n, size=224, patch=16, width=768, depth=12, heads=12):
    from timm.models import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=size, patch_size=patch, embed_dim=width, depth=depth, num_heads=heads,
        num_classes=10,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, 3, size, size), dtype=np.float32)
    return TransformerClassifier(model), X, rng.integers(10, size=n), {"rank": 64}


def random_texts(n, n_words, ragged=False):
    """Return n texts of random words: of `n_words`, or of half as many to `n_words` if ragged."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(n_words // 2, n_words, n) if ragged else np.full(n, n_words)
    texts = [" ".join(f"w{i}" for i in rng.integers(N_WORDS, size=size)) for size in lengths]
    return np.array(texts, dtype=object)


def word_tokenizer(max_length):
    """Return a tokenizer of the words of `random_texts`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *(f"w{i}" for i in range(N_WORDS))]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", model_max_length=max_length
    )


def _bert(n, n_tokens=128, ragged=False, **config):
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(num_labels=2, **config))
    tokenizer = word_tokenizer(n_tokens)
    X = random_texts(n, n_tokens - 2, ragged)
    y = np.random.default_rng(0).integers(2, size=n)
    return TransformerClassifier(model, preprocessor=tokenizer), X, y, {"rank": 64}


def _table(n, n_features=10, depth=3, width=64):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, n_features))
    y = (X[:, 0] + X[:, 1] * X[:, 2] + rng.standard_normal(n) > 0).astype(int)
    classifier = FTTransformerClassifier(
        n_blocks=depth, width=width, max_epochs=3, validation_fraction=0.0, random_state=0
    )
    return classifier, X, y, {"rank": 16}


# name -> function of the number of samples; returns a classifier, X, y and options.
CASES: dict[str, Callable] = {
    "ViT, Fashion-MNIST": _vit_fashion_mnist,
    "MiniLM, movie reviews": _minilm_movies,
    "MiniLM, CLINC150": _minilm_clinc150,
    "FT-Transformer, table": _table,
    "ViT-B/16, 224 px": _vit,
    "BERT-base, 128 tokens": _bert,
}
GIVEN = tuple(name for name in CASES if name.startswith(("ViT, ", "MiniLM")))  # need the data
# Operations depend on the number of blocks, not on the width.
COUNTED: dict[str, Callable] = {
    "BERT, 6 blocks": partial(
        _bert, n_tokens=16, ragged=True, num_hidden_layers=6, vocab_size=N_WORDS + 4, **NARROW
    ),
    "BERT, 12 blocks": partial(
        _bert, n_tokens=16, ragged=True, num_hidden_layers=12, vocab_size=N_WORDS + 4, **NARROW
    ),
    "ViT, 12 blocks": partial(_vit, size=32, patch=16, width=64, heads=4),
    "FT-Transformer, 3 blocks": partial(_table, width=16),
}
CASES |= COUNTED
