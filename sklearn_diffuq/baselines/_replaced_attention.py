"""Putting another self-attention in the place of that of a block.

A `GaussianAttention` takes the place of everything between the input of the old attention and its
output layer; the rest of the block is kept.
"""

import torch
from torch.nn import functional as F

from sklearn_diffuq._backbones.attention import find_attention
from sklearn_diffuq._backbones.ft_transformer import FTBlock, FTTransformer
from sklearn_diffuq.baselines._gaussian_attention import Projections

# Arguments by which blocks pass rotary or relative positions to their attention.
_POSITIONS = ("position_embeddings", "rope", "rel_pos_bias", "shared_rel_pos_bias")


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
    found = {k: replaceable_attention(backbone.blocks[k]) for k in numbers}
    inputs = _attention_inputs(backbone, found.values(), batch)
    attentions = []
    for (k, layers), (states, mask) in zip(found.items(), inputs):
        maps = layers.separate_projections()
        with backbone.frozen(), torch.no_grad():
            attention = make(Projections(*maps, layers.n_heads, states, mask), k).to(states)
        path = f"{backbone.path}.{k}" + (f".{layers.path}" if layers.path else "")
        host = _host(attention, layers)
        host.train(layers.module.training)
        backbone.module.set_submodule(path, host)
        attentions.append(attention)
    return attentions


def replaceable_attention(block):
    """Return the `AttentionLayers` of a block, or say why its attention cannot be replaced."""
    layers = find_attention(block)
    if layers is not None and (layers.is_plain or isinstance(layers.module, FTBlock)):
        return layers
    raise _unknown_attention(block)


def _unknown_attention(block):
    return ValueError(
        f"No self-attention of a known kind was found in {type(block).__name__}. Attention is "
        "replaced in BERT-like and ViT-like Hugging Face models, timm's VisionTransformer and "
        f"{FTTransformer.__name__}; causal, relative and rotary attention cannot be replaced."
    )


def _attention_inputs(backbone, attentions, batch):
    """Run a batch; return the inputs (states, mask of real tokens) of each attention."""
    seen = {}

    def record(module, args, kwargs):
        if any(kwargs.get(name) is not None for name in _POSITIONS):
            raise _unknown_attention(module)
        x = args[0] if args else kwargs["hidden_states"]
        given = [kwargs.get("attention_mask", kwargs.get("attn_mask")), *args[1:2]]
        mask = next((m for m in given if m is not None), None)
        states = module.attention_norm(x) if isinstance(module, FTBlock) else x
        seen[module] = states, key_mask(mask)

    modules = [layers.module for layers in attentions]
    handles = [m.register_forward_pre_hook(record, with_kwargs=True) for m in modules]
    try:
        with backbone.frozen(), torch.no_grad():
            backbone.logits(batch)
    finally:
        for handle in handles:
            handle.remove()
    return [seen[module] for module in modules]


def key_mask(mask):
    """Return which keys are real, (n, t), from any mask that marks padding; None stays None."""
    if mask is None:
        return None
    mask = mask[:, 0, 0] if mask.ndim == 4 else mask
    return mask > -1 if mask.is_floating_point() else mask.bool()


# Hosts: modules that are called like the replaced ones -----------------------------------------


def _host(attention, layers):
    """Return the module that takes the place of an attention module."""
    if isinstance(layers.module, FTBlock):
        return FTBlockHost(attention, layers.module)
    if layers.is_fused:
        return TimmHost(attention, layers.output, layers.module.proj_drop)
    is_inside = any(m is layers.output for m in layers.module.modules())
    return HuggingFaceHost(attention, layers.output if is_inside else torch.nn.Identity())


class HuggingFaceHost(torch.nn.Module):
    """Takes the place of a Hugging Face self-attention module."""

    def __init__(self, attention, output):
        super().__init__()
        self.attention, self.output = attention, output

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        return self.output(self.attention(hidden_states, key_mask(attention_mask))), None


class TimmHost(torch.nn.Module):
    """Takes the place of a timm ``Attention``."""

    def __init__(self, attention, projection, dropout):
        super().__init__()
        self.attention, self.projection, self.dropout = attention, projection, dropout

    def forward(self, x, attn_mask=None, **kwargs):
        return self.dropout(self.projection(self.attention(x, key_mask(attn_mask))))


class FTBlockHost(torch.nn.Module):
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
