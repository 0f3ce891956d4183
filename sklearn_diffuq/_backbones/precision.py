"""Models in another precision than float32, which everything around them computes in."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_diffuq.exceptions import BackboneError

HALF = (torch.float16, torch.bfloat16)


def precision_of(module: nn.Module) -> torch.dtype:
    """Return the dtype of the first parameter that holds floats."""
    found = (p.dtype for p in module.parameters() if p.is_floating_point())
    return next(found, torch.float32)


def needs_float32(module: nn.Module, is_trained: bool) -> bool:
    """Tell whether a model has to be converted: double is, and half precision to be trained."""
    return precision_of(module) in (torch.float64, *(HALF if is_trained else ()))


def in_precision(module: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return model inputs with the floats among them in the precision of the model."""
    dtype = precision_of(module)
    if dtype not in (*HALF, torch.float64):
        return batch
    return {k: v.to(dtype) if v.dtype == torch.float32 else v for k, v in batch.items()}


def widened(value: Any) -> Any:
    """Return a tensor, or those in tuples, lists and dicts, in float32 if it has half precision."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in HALF else value
    if type(value) in (tuple, list):
        return type(value)(map(widened, value))
    if type(value) is dict:
        return {name: widened(part) for name, part in value.items()}
    return value


def passes_gradients(module: nn.Module, call: Callable[[], Any]) -> bool:
    """Tell whether gradients pass all quantised layers of a model.

    Parameters
    ----------
    module : torch.nn.Module
    call : callable
        ``call()`` runs the model; the inputs of the layers are recorded.
    """
    layers = [part for part in module.modules() if is_quantised(part)]
    inputs: dict[nn.Module, Tensor] = {}

    def record(layer: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor) and args[0].is_floating_point():
            inputs[layer] = args[0].detach()

    handles = [layer.register_forward_pre_hook(record) for layer in layers]
    try:
        if layers:
            call()
    finally:
        for handle in handles:
            handle.remove()
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that an operation has no derivative
        return all(_passes(layer, x) for layer, x in inputs.items())


def _passes(layer: nn.Module, x: Tensor) -> bool:
    x = x.clone().requires_grad_()
    try:
        (gradient,) = torch.autograd.grad(layer(x).sum(), x, allow_unused=True)
    except RuntimeError:  # there is no graph, or an operation in it cannot be derived
        return False
    return gradient is not None


def n_weights(module: nn.Module) -> int:
    """Return the number of parameters, also of layers that keep them packed."""
    packed: list[Any] = [part for part in module.modules() if hasattr(part, "_packed_params")]
    linear = [part for part in packed if callable(getattr(part, "weight", None))]
    weights = [value for layer in linear for value in (layer.weight(), layer.bias())]
    return sum(v.numel() for v in (*module.parameters(), *weights) if v is not None)


def is_quantised(part: nn.Module) -> bool:
    """Tell whether a layer keeps its weights packed, or in tensors of a class of their own."""
    own = (*part.parameters(recurse=False), *part.buffers(recurse=False))
    return hasattr(part, "_packed_params") or any(
        type(value) not in (Tensor, nn.Parameter) for value in own
    )


def make_trainable(module: nn.Module) -> None:
    """Have gradients for every floating-point parameter of a model.

    Raises
    ------
    BackboneError
        If layers are quantised: packed weights would stay what they are.
    """
    quantised = [part for part in module.modules() if is_quantised(part)]
    if quantised:
        raise BackboneError(
            f"A model with quantised layers ({type(quantised[0]).__name__}) cannot be trained: "
            "their packed weights have no gradients. Fine-tune the model before it is quantised, "
            "or choose what trains nothing, such as finetune=False."
        )
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())


def unpacked(value: Tensor) -> Tensor:
    """Return a tensor with its values as plain numbers."""
    is_plain = not value.is_quantized and type(value) in (Tensor, nn.Parameter)
    return value if is_plain else value.dequantize()
