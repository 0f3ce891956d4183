"""Where a model keeps its blocks, how it is called, and where its logits are."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sklearn_diffuq.exceptions import BackboneError


def find_blocks(module: nn.Module) -> dict[str, list[nn.Module]]:
    """Find the lists in a module tree that may be the blocks of a transformer.

    Parameters
    ----------
    module : torch.nn.Module
        The model to look through.

    Returns
    -------
    candidates : dict of str to list of torch.nn.Module
        Every ``ModuleList`` or ``Sequential`` of two or more children of one class that have
        parameters, under its dotted path, the largest number of parameters first.

    Examples
    --------
    >>> from timm.models import VisionTransformer
    >>> from sklearn_diffuq._backbones.discovery import find_blocks
    >>> model = VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=3, num_heads=2)
    >>> {path: len(blocks) for path, blocks in find_blocks(model).items()}
    {'blocks': 3}
    """
    found: list[tuple[int, str, list[nn.Module]]] = []
    for path, child in module.named_modules():
        if not isinstance(child, (nn.ModuleList, nn.Sequential)):
            continue
        blocks = list(child)
        size = sum(parameter.numel() for parameter in child.parameters())
        if len(blocks) >= 2 and len({type(block) for block in blocks}) == 1 and size > 0:
            found.append((size, path, blocks))
    # The sort is stable: of lists of equal size, the outermost comes first.
    found.sort(key=lambda candidate: -candidate[0])
    return {path: blocks for _, path, blocks in found}


def candidate_blocks(module: nn.Module, path: str | None = None) -> dict[str, list[nn.Module]]:
    """Return ``{path: blocks}``: the list the user named, or all candidates, best first."""
    name = type(module).__name__
    if path is not None:
        try:
            named = module.get_submodule(path)
        except AttributeError:
            raise BackboneError(
                f"blocks={path!r} is not a submodule of {name}. {describe_candidates(module)}"
            ) from None
        if not isinstance(named, (nn.ModuleList, nn.Sequential)) or len(named) == 0:
            raise BackboneError(
                f"blocks={path!r} is a {type(named).__name__} in {name}, but must be a non-empty "
                f"ModuleList or Sequential. {describe_candidates(module)}"
            )
        return {path: list(named)}
    if is_hugging_face(module) and getattr(module.config, "is_encoder_decoder", False):
        raise BackboneError(
            f"{name} is an encoder-decoder model: it has two chains of blocks, and which of them "
            f"to use is not a choice to guess. Name one. {describe_candidates(module)}"
        )
    candidates = find_blocks(module)
    if not candidates:
        raise BackboneError(
            f"No blocks found in {name}: it holds no ModuleList or Sequential of two or more "
            "children of one class. A model that calls one shared layer repeatedly (ALBERT) cannot "
            "be cut; a list of one block, or of blocks of several classes, has to be named by "
            "blocks='dotted.path'."
        )
    return candidates


def describe_candidates(module: nn.Module, without: str | None = None) -> str:
    """List the candidates for an error message."""
    found = {path: blocks for path, blocks in find_blocks(module).items() if path != without}
    if not found:
        return f"There is no {'' if without is None else 'other '}list of blocks in the model."
    listed = ", ".join(
        f"{path!r} ({len(blocks)} x {type(blocks[0]).__name__})"
        for path, blocks in list(found.items())[:8]
    )
    return f"Lists that can be named by blocks=: {listed}."


def is_hugging_face(module: nn.Module) -> bool:
    """Tell whether a module is a transformers model, without importing transformers."""
    return any(
        cls.__name__ == "PreTrainedModel" and cls.__module__.startswith("transformers.")
        for cls in type(module).__mro__
    )


def is_timm(module: nn.Module) -> bool:
    """Tell whether a module is a timm model, without importing timm."""
    return any(cls.__module__.startswith("timm.models.") for cls in type(module).__mro__)


def call_model(module: nn.Module, batch: dict[str, torch.Tensor]) -> Any:
    """Call a model on a batch, a dict of tensors.

    Hugging Face models, and any model whose ``forward`` has parameters of all the batch's names,
    get keywords; other models get the values in order.
    """
    parameters = inspect.signature(module.forward).parameters
    if is_hugging_face(module):
        return module(**batch, **_quiet_options(module.config, parameters))
    if all(name in parameters for name in batch):
        return module(**batch)
    return module(*batch.values())


def _quiet_options(config: Any, parameters: Mapping[str, inspect.Parameter]) -> dict[str, bool]:
    """Options that keep a Hugging Face model from keeping a cache or installing hooks."""
    options = {}
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    # A cache would be recorded with the calls and grow each time a block is replayed.
    if hasattr(config.get_text_config(), "use_cache") and (takes_any or "use_cache" in parameters):
        options["use_cache"] = False
    # Asking for states or attentions leaves hooks on the model for good, and then it cannot be
    # pickled; the states come from the cut anyway.
    for name in ("output_hidden_states", "output_attentions"):
        if getattr(config, name, False):
            options[name] = False
    return options


def read_logits(module: nn.Module, output: Any) -> torch.Tensor | None:
    """Return the ``(n, n_classes)`` logits in a model's output, or None if it has none."""
    if is_timm(module) and getattr(module, "num_classes", None) == 0:
        return None  # pooled features, which have the shape of logits
    if isinstance(output, dict):  # a Hugging Face ModelOutput is one too
        output = output.get("logits")
    elif isinstance(output, (tuple, list)):
        output = output[0]
    elif not isinstance(output, torch.Tensor):
        output = getattr(output, "logits", None)
    if not isinstance(output, torch.Tensor) or output.ndim != 2:
        return None
    return output.float() if output.dtype in (torch.float16, torch.bfloat16) else output
