"""A toy transformer with switches for what models do differently."""

import pytest
import torch
import transformers
from timm.models import VisionTransformer
from torch import nn


class ToyBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Linear(width, width)
        self.dropout = nn.Dropout(0.5)

    def forward(self, h, mask=None):
        real = torch.ones_like(h[..., :1]) if mask is None else mask.unsqueeze(-1).to(h.dtype)
        mean = (h * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)
        return h + self.dropout(torch.tanh(self.mix(self.norm(h) + mean)))


class Toy(nn.Module):
    """Embeds ids, runs three blocks and reads out the mean. Subclasses override one step."""

    def __init__(self, width=8, n_blocks=3, block=ToyBlock):
        super().__init__()
        self.embedding = nn.Embedding(20, width)
        self.layers = nn.ModuleList(block(width) for _ in range(n_blocks))
        self.head = nn.Linear(width, 4)

    def run(self, h, mask):
        for layer in self.layers:
            h = layer(h, mask)
        return h

    def forward(self, ids, attention_mask=None):
        return self.head(self.run(self.embedding(ids), attention_mask).mean(1))


@pytest.fixture
def toy():
    """The class of the toy transformer, to build or to derive from."""
    return Toy


@pytest.fixture
def toy_block():
    return ToyBlock


@pytest.fixture
def ids():
    return {"ids": torch.randint(0, 20, (3, 5))}


@pytest.fixture
def text_batch():
    """Ids and mask of three texts of 9, 6 and 2 tokens."""
    mask = torch.arange(9) < torch.tensor([9, 6, 2])[:, None]
    return {"input_ids": torch.randint(3, 40, (3, 9)) * mask, "attention_mask": mask.long()}


@pytest.fixture
def tiny_config():
    """Options of a small text configuration of transformers."""
    return dict(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        num_labels=4,
    )


@pytest.fixture
def bert(tiny_config):
    return transformers.BertForSequenceClassification(transformers.BertConfig(**tiny_config))


@pytest.fixture
def gpt2(tiny_config):
    config = transformers.GPT2Config(**tiny_config, n_embd=16, n_layer=3, n_head=2)
    return transformers.GPT2ForSequenceClassification(config)


@pytest.fixture
def vit():
    model = VisionTransformer(
        img_size=16,
        patch_size=8,
        embed_dim=16,
        depth=3,
        num_heads=2,
        num_classes=4,
        drop_path_rate=0.5,
    )
    nn.init.normal_(model.head.weight)  # timm starts the head at zero
    return model


@pytest.fixture(params=["bert", "gpt2", "vit", "toy"])
def model_and_batch(request, text_batch, ids):
    """A model of each kind in mixed train and eval mode, with some parameters frozen."""
    if request.param == "toy":
        model, batch = Toy(), ids
    elif request.param == "vit":
        model, batch = request.getfixturevalue("vit"), {"x": torch.randn(3, 3, 16, 16)}
    else:
        model, batch = request.getfixturevalue(request.param), text_batch
    model.eval()
    for k, module in enumerate(model.modules()):
        module.training = k % 3 == 0
    for k, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(k % 2 == 0)
    return model, batch
