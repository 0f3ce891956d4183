"""What a saved model is recognised by."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_diffuq._backbones.precision import n_weights, unpacked
from sklearn_diffuq.exceptions import BackboneError


def describe_model(module: nn.Module, path: str) -> dict[str, Any]:
    """Return what a model is recognised by, as values that JSON knows.

    Parameters
    ----------
    module : torch.nn.Module
    path : str
        Dotted path of its blocks.

    Returns
    -------
    description : dict
        ``class``, ``blocks`` (the path), ``n_blocks``, ``n_block_parameters``, and ``sha256`` of
        all weights and buffers.
    """
    try:
        blocks = list(module.get_submodule(path).children())
    except AttributeError:
        blocks = []
    digest = hashlib.sha256()
    for name, value in _tensors(module.state_dict()):
        value = unpacked(value.detach()).cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return {
        "class": type(module).__name__,
        "blocks": path,
        "n_blocks": len(blocks),
        "n_block_parameters": sum(map(n_weights, blocks)),
        "sha256": digest.hexdigest(),
    }


def _tensors(state: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield names and tensors; quantised layers keep tuples of them."""
    for name, value in state.items():
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, Tensor):
                yield name, part


def model_in_words(description: dict[str, Any]) -> str:
    """Return a description as part of an error message."""
    return (
        f"{description['class']} with {description['n_blocks']} blocks in "
        f"{description['blocks']!r} of {description['n_block_parameters']} parameters, weights "
        f"{description['sha256'][:12]}"
    )


def check_same_model(expected: dict[str, Any], module: nn.Module) -> None:
    """Raise BackboneError unless a model has the expected description; its class may differ."""
    found = describe_model(module, expected["blocks"])
    if any(expected[name] != found[name] for name in expected if name != "class"):
        raise BackboneError(
            "The wrapped model is not the one that was saved: expected "
            f"{model_in_words(expected)}; got {model_in_words(found)}."
        )
