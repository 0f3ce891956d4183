"""Finding the self-attention of a block, and putting another one in its place.

The attention that takes its place is a `GaussianAttention` between the projections and the output
layer of the old one; everything else of the block is kept.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch.nn import functional as F

from sklearn_diffuq._backbones.ft_transformer import FTTransformer

# Names of query, key and value, and of the output layer where it is part of the attention.
_NAMES = (
    ("query", "key", "value", None),
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("q_lin", "k_lin", "v_lin", "out_lin"),
)


@dataclass
class Projections:
    """The linear maps of an attention, and what it was given on a batch.

    Attributes
    ----------
    query, key, value : torch.nn.Linear
    n_heads : int
    states : Tensor of shape (n, t, d)
        Its inputs on a batch of training rows.
    mask : Tensor of shape (n, t) and dtype bool, or None
        True for real tokens.
    """

    query: torch.nn.Linear
    key: torch.nn.Linear
    value: torch.nn.Linear
    n_heads: int
    states: torch.Tensor = None
    mask: torch.Tensor = None

    def heads(self, name):
        """Return the projected states of a map, shape (n, n_heads, t, width of a head)."""
        return split_heads(getattr(self, name)(self.states), self.n_heads)

    @cached_property
    def real(self):
        """Which tokens of the batch are real, shape (n, t)."""
        shape = self.states.shape[:2]
        return torch.ones(shape, dtype=torch.bool) if self.mask is None else self.mask.cpu()

    def attend(self):
        """Return the softmax attention of the states, (n, n_heads, t, width of a head)."""
        seen = None if self.mask is None else self.mask[:, None, None]
        q, k, v = (self.heads(name) for name in ("query", "key", "value"))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)


def split_heads(x, n_heads):
    """Turn (n, t, n_heads * width) into (n, n_heads, t, width)."""
    return x.unflatten(2, (n_heads, -1)).transpose(1, 2)


class GaussianAttention(torch.nn.Module, ABC):
    """Self-attention whose output is a draw from a Gaussian process posterior.

    In training, every row has its own fresh draw. In evaluation, all rows share the draw number
    `sample`, and None gives the posterior mean.

    Attributes
    ----------
    sample : int or None
    divergence : pair of scalar Tensor, or None
        Divergence of the posterior from the prior in the last call in training: the part of a row,
        averaged over the rows, and the part that all rows of a training set share.
    """

    def __init__(self, seed):
        super().__init__()
        self.seed, self.sample, self.divergence = seed, None, None
        self._drawn = {}

    def noise(self, like, kind, *shape):
        """Return standard normal numbers, shape (n or 1, *shape), like the tensor (n, ...)."""
        if self.training:
            return like.new_empty(len(like), *shape).normal_()
        if self.sample is None:
            return like.new_zeros(1, *shape)
        key = (self.sample, kind, shape)
        if key not in self._drawn:
            rng = np.random.default_rng([self.seed, self.sample, kind])
            self._drawn[key] = torch.from_numpy(rng.standard_normal((1, *shape)))
        return self._drawn[key].to(like)

    def forward(self, x, mask=None):
        """Map states (n, t, d) and real tokens (n, t) to (n, t, n_heads * width of a head)."""
        output, *divergence = self.attend(x, mask)
        self.divergence = divergence if self.training else None
        return output.transpose(1, 2).flatten(2)

    @abstractmethod
    def attend(self, x, mask):
        """Return the draw (n, n_heads, t, width of a head) and both parts of the divergence."""


# Hosts: the calling conventions of the models -------------------------------------------------


class HuggingFaceHost(torch.nn.Module):
    """Takes the place of a Hugging Face self-attention module."""

    def __init__(self, attention, output):
        super().__init__()
        self.attention = attention
        self.output = torch.nn.Identity() if output is None else output

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        return self.output(self.attention(hidden_states, key_mask(attention_mask))), None


class TimmHost(torch.nn.Module):
    """Takes the place of a timm ``Attention``."""

    def __init__(self, attention, projection, dropout):
        super().__init__()
        self.attention, self.projection, self.dropout = attention, projection, dropout

    def forward(self, x, attn_mask=None, **kwargs):
        return self.dropout(self.projection(self.attention(x, key_mask(attn_mask))))


class TableHost(torch.nn.Module):
    """Takes the place of a whole block of an `FTTransformer`."""

    def __init__(self, attention, block):
        super().__init__()
        self.attention = attention
        self.norm, self.project = block.attention_norm, block.project
        self.feedforward_norm = block.feedforward_norm
        self.expand, self.contract, self.dropout = block.expand, block.contract, block.dropout

    def forward(self, h):
        h = h + self.project(self.attention(self.norm(h)))
        value, gate = self.expand(self.feedforward_norm(h)).chunk(2, dim=-1)
        return h + self.contract(F.dropout(value * F.relu(gate), self.dropout, self.training))


def key_mask(mask):
    """Return which keys are real, (n, t), from any mask that padding makes; None stays None."""
    if mask is None:
        return None
    mask = mask[:, 0, 0] if mask.ndim == 4 else mask
    return mask > -1 if mask.is_floating_point() else mask.bool()


# Finding and replacing -----------------------------------------------------------------------


def find_attention(block):
    """Return name, `Projections` and output layer of the self-attention of a block.

    The name is a dotted path within the block, "" for the block itself. The output layer is None
    where the attention has none of its own.
    """
    for name, module in block.named_modules():
        children = {n for n, child in module.named_children() if list(child.parameters())}
        if name == "" and children >= {"attention_norm", "qkv", "project", "expand", "contract"}:
            return name, _unfused(module.qkv, module.n_heads), None
        if children == {"qkv", "proj"}:
            return name, _unfused(module.qkv, module.num_heads), module.proj
        for query, key, value, output in _NAMES:
            wanted = {query, key, value, output} - {None}
            if children == wanted and not getattr(module, "is_causal", False):
                maps = (getattr(module, n) for n in (query, key, value))
                projections = Projections(*maps, _n_heads(module))
                return name, projections, output and getattr(module, output)
    raise ValueError(
        f"No self-attention of a known kind was found in {type(block).__name__}. Attention is "
        "replaced in BERT-like and ViT-like Hugging Face models, timm's VisionTransformer and "
        f"{FTTransformer.__name__}; causal, relative and rotary attention cannot be replaced."
    )


def _n_heads(module):
    return module.num_attention_heads if hasattr(module, "num_attention_heads") else module.n_heads


def _unfused(qkv, n_heads):
    """Return the three maps of one linear layer."""
    maps = []
    biases = [None] * 3 if qkv.bias is None else qkv.bias.detach().chunk(3)
    for weight, bias in zip(qkv.weight.detach().chunk(3), biases):
        layer = torch.nn.utils.skip_init(
            torch.nn.Linear, weight.shape[1], len(weight), bias=bias is not None
        ).to(weight)
        layer.weight.data.copy_(weight)
        if bias is not None:
            layer.bias.data.copy_(bias)
        maps.append(layer)
    return Projections(*maps, n_heads)


def replace_attention(backbone, n_layers, batch, make):
    """Replace the attention of the last blocks of a backbone, in place.

    Parameters
    ----------
    backbone : Backbone
        A copy of the wrapped model.
    n_layers : int
        Number of blocks, at most all.
    batch : dict of str to Tensor
        Training rows, on which the old attention is run once.
    make : callable
        ``make(projections, k)`` returns the `GaussianAttention` of block k.

    Returns
    -------
    attentions : list of GaussianAttention
        From the first to the last.
    """
    numbers = range(max(0, backbone.n_blocks - n_layers), backbone.n_blocks)
    found = {k: find_attention(backbone.blocks[k]) for k in numbers}
    _record_inputs(backbone, found, batch)
    attentions = []
    for k, (name, projections, output) in found.items():
        with backbone.frozen(), torch.no_grad():
            attention = make(projections, k).to(projections.states)
        path = f"{backbone.path}.{k}" + (f".{name}" if name else "")
        old = backbone.module.get_submodule(path)
        if not name:
            host = TableHost(attention, old)
        elif hasattr(old, "proj"):
            host = TimmHost(attention, output, old.proj_drop)
        else:
            host = HuggingFaceHost(attention, output)
        host.train(old.training)
        backbone.module.set_submodule(path, host)
        attentions.append(attention)
    return attentions


def _record_inputs(backbone, found, batch):
    """Run a batch and keep what each attention was called with."""

    def recorder(projections, block):
        def record(module, args, kwargs):
            x = args[0] if args else kwargs["hidden_states"]
            given = [kwargs.get("attention_mask", kwargs.get("attn_mask")), *args[1:2]]
            mask = next((m for m in given if m is not None), None)
            projections.mask = key_mask(mask)
            projections.states = module.attention_norm(x) if module is block else x

        return record

    handles = []
    for k, (name, projections, _) in found.items():
        block = backbone.blocks[k]
        module = block.get_submodule(name)
        hook = recorder(projections, block)
        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        with backbone.frozen(), torch.no_grad():
            backbone.logits(batch)
    finally:
        for handle in handles:
            handle.remove()
