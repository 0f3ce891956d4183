"""Small random models of texts and images, and rows for them."""

import numpy as np
import torch
import transformers
from sklearn.datasets import load_digits
from timm.models import VisionTransformer

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "good", "bad", "film", "plot", "a", "the", "so"]


def make_tokenizer(pair=False, **kwargs):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    options = {"pad_token": "[PAD]", "model_max_length": 512} | kwargs
    if pair:
        options["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, **options)


def make_bert(head=True, **kwargs):
    torch.manual_seed(0)
    options = {"num_labels": 2} | kwargs
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
        **options,
    )
    cls = transformers.BertForSequenceClassification if head else transformers.BertModel
    return cls(config).eval()


def make_texts(n=60, longest=50):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, size=n)
    texts = [
        " ".join(rng.permutation([["bad", "good"][label], *rng.choice(WORDS[6:], size=k)]))
        for label, k in zip(y, rng.integers(0, longest, size=n))
    ]
    return texts, y


def make_vit(n_classes=10, **kwargs):
    torch.manual_seed(0)
    options = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 16} | kwargs
    return VisionTransformer(depth=3, num_heads=2, num_classes=n_classes, **options).eval()


def make_images(n=40):
    X, y = load_digits(return_X_y=True)
    return X[:n].reshape(-1, 8, 8) / 16, y[:n]
