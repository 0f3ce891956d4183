"""Where a model keeps its blocks."""

from torch import nn

from sklearn_diffuq._backbones.calling import inner_model
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
    candidates = find_blocks(module)
    config = getattr(inner_model(module), "config", None)
    if getattr(config, "is_encoder_decoder", False) and len(candidates) > 1:
        raise BackboneError(
            f"{name} is an encoder-decoder model: it has two chains of blocks, and which of them "
            f"to use is not a choice to guess. Name one. {describe_candidates(module)}"
        )
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
