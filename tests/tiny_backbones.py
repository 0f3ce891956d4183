"""Small random backbones for tests of the stages after the cut."""

import torch
from timm.models import VisionTransformer
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
)

from sklearn_diffuq._backbones.backbone import Backbone


def _enlarge(model):
    """Scale the initial matrices up, so that blocks change the state as trained ones do."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5)
    return model


def vit(n=6):
    """Return a probed ViT of four blocks of width 16, and a batch of `n` images."""
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=16, patch_size=8, in_chans=1, embed_dim=16, depth=4, num_heads=2, num_classes=3
    )
    batch = {"x": torch.randn(n, 1, 16, 16)}
    return Backbone(_enlarge(model)).probe(batch), batch


def text(n=6, decoder=False):
    """Return a probed BERT or GPT-2 of three blocks of width 16, and a batch with padding."""
    torch.manual_seed(0)
    if decoder:
        config = GPT2Config(
            vocab_size=50, n_positions=16, n_embd=16, n_layer=3, n_head=2, num_labels=2,
            pad_token_id=0,
        )  # fmt: skip
        model = GPT2ForSequenceClassification(config)
    else:
        config = BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=16, num_labels=2,
        )  # fmt: skip
        model = BertForSequenceClassification(config)
    ids = torch.randint(1, 50, (n, 7))
    mask = torch.ones(n, 7, dtype=torch.long)
    mask[0, 4:] = 0
    batch = {"input_ids": ids * mask, "attention_mask": mask}
    return Backbone(_enlarge(model)).probe(batch), batch


ALL = {"vit": vit, "bert": text, "gpt2": lambda n=6: text(n, decoder=True)}
