"""How a model is called, also inside of a wrapper, and where its logits are."""

import inspect
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from sklearn_diffuq._backbones.precision import in_precision, widened
from sklearn_diffuq.exceptions import BackboneError

Parameters = Mapping[str, inspect.Parameter]

# Where wrappers keep the model: torch.compile, DataParallel and its kin, PEFT.
_INSIDE = ("_orig_mod", "module", "base_model")
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def is_hugging_face(module: nn.Module) -> bool:
    """Tell whether a module is a transformers model, without importing transformers."""
    return any(
        cls.__name__ == "PreTrainedModel" and cls.__module__.startswith("transformers.")
        for cls in type(module).__mro__
    )


def is_timm(module: nn.Module) -> bool:
    """Tell whether a module is a timm model, without importing timm."""
    return any(cls.__module__.startswith("timm.models.") for cls in type(module).__mro__)


def is_peft(module: nn.Module) -> bool:
    """Tell whether a module is a PEFT model, without importing peft."""
    return any(cls.__module__.startswith("peft.") for cls in type(module).__mro__)


def inner_model(module: nn.Module) -> nn.Module:
    """Return the model inside of wrappers, which knows the configuration; else the module itself.

    Examples
    --------
    >>> from torch import nn
    >>> from sklearn_diffuq._backbones.calling import inner_model
    >>> inner_model(nn.DataParallel(nn.Linear(2, 3)))
    Linear(in_features=2, out_features=3, bias=True)
    """
    while not (is_hugging_face(module) or is_timm(module)):
        names = (*_INSIDE, "model") if is_peft(module) else _INSIDE
        found = (vars(module)["_modules"].get(name) for name in names)
        inside = next((child for child in found if child is not None), None)
        if inside is None:
            break
        module = inside
    return module


def call_model(module: nn.Module, batch: dict[str, torch.Tensor]) -> Any:
    """Call a model on a batch, a dict of tensors; floats get the precision of the model.

    Names that ``forward`` has, or takes by ``**kwargs``, are keywords; see `bind`. The copies of
    DataParallel and the code of torch.compile are passed by: the module itself is called.
    """
    args, kwargs = bind(module, list(batch))
    module, batch = _without_shell(module), in_precision(module, batch)
    with plainly(module):
        options = _quiet_options(module)
        named = {name: batch[key] for name, key in kwargs.items()}
        try:
            return module(*[batch[key] for key in args], **named, **options)
        except IndexError as error:
            if "out of range in self" not in str(error):  # the words of torch's embedding
                raise
            raise ValueError(_beyond_embeddings(module, batch, error)) from error


def _beyond_embeddings(module: nn.Module, batch: dict[str, torch.Tensor], error: Exception) -> str:
    largest = [
        f"{name!r} up to {int(values.max())}"
        for name, values in batch.items()
        if not values.is_floating_point() and values.numel() > 0
    ]
    sizes = sorted({m.num_embeddings for m in module.modules() if isinstance(m, nn.Embedding)})
    return (
        f"{type(module).__name__} looks something up that it does not have ({error}). It gets "
        f"{', '.join(largest) or 'no ids'}; its embeddings know numbers below "
        f"{', '.join(map(str, sizes)) or 'none'}. Give ids that the model knows, and texts that "
        "are not longer than its positions."
    )


class _Plain(threading.local):
    """The modules that a thread runs as `plainly` does at present."""

    def __init__(self) -> None:
        self.modules: list[nn.Module] = []


_plain = _Plain()


@contextmanager
def plainly(module: nn.Module) -> Iterator[None]:
    """Run a module as it was written, without compilation and caches: stubs have to be seen.

    Within the context, further ones of the same module cost nothing.
    """
    if any(known is module for known in _plain.modules):
        yield
        return
    is_compiled = any(_is_compiled(part) for part in module.modules())
    _plain.modules.append(module)
    try:
        with (
            torch.compiler.set_stance("force_eager") if is_compiled else nullcontext(),
            _no_cache(module),
        ):
            yield
    finally:
        _plain.modules.pop()


def _is_compiled(part: nn.Module) -> bool:
    return part._compiled_call_impl is not None or "_orig_mod" in part._modules


def bind(module: nn.Module, names: list[str]) -> tuple[list[str], dict[str, str]]:
    """Decide which inputs are given by position and which by keyword.

    Parameters
    ----------
    module : torch.nn.Module
    names : list of str
        Names of the inputs, in order.

    Returns
    -------
    args : list of str
        Inputs given by position.
    kwargs : dict of str to str
        Parameter -> the input it gets.

    Raises
    ------
    BackboneError
        If the names do not say which parameter gets which input, and neither does their order.
    """
    module = _without_shell(module)
    model, parameters = inner_model(module), _parameters(module)
    positional = [name for name, p in parameters.items() if p.kind in _POSITIONAL]
    takes_any, takes_more = _takes(parameters, "VAR_KEYWORD"), _takes(parameters, "VAR_POSITIONAL")
    known = [name for name in names if name in parameters]
    required = [name for name in positional if _is_required(parameters[name]) and name not in names]
    by_name: tuple[list[str], dict[str, str]] = [], {name: name for name in names}
    if (model is module and (is_hugging_face(model) or is_peft(model))) or len(known) == len(names):
        return by_name
    # one input is what the first parameter is: pixels for `x`
    takes_one = len(names) == 1 and not is_hugging_face(model) and (positional or takes_more)
    if takes_any and not required and not takes_one:
        return by_name
    # of several only the first input has another name: token ids for `ids`
    if (len(names) - len(known) == 1 or takes_any) and required in ([], positional[:1]):
        if names[0] not in known and positional and positional[0] not in names:
            return names[:1], {name: name for name in names[1:]}
    too_many = len(names) > len(positional) and not takes_more
    if known or too_many or len(names) < len(required):
        raise BackboneError(
            f"{type(module).__name__} gets the inputs {', '.join(names)}, but its forward has the "
            f"parameters ({', '.join(map(str, parameters.values()))}): which of them gets which "
            "input is not a choice to guess. Give a mapping with the names of the parameters, or "
            "wrap the model in a module whose forward has the names of the inputs, or **kwargs."
        )
    return list(names), {}


def goes_by_order(module: nn.Module, names: list[str]) -> bool:
    """Tell whether more than one input is given by position, so that their order matters."""
    return len(bind(module, names)[0]) > 1


def _without_shell(module: nn.Module) -> nn.Module:
    """Return the module that DataParallel, DistributedDataParallel or torch.compile wraps."""
    while True:
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        elif isinstance(vars(module)["_modules"].get("_orig_mod"), nn.Module):
            module = vars(module)["_modules"]["_orig_mod"]
        else:
            return module


def _parameters(module: nn.Module) -> Parameters:
    """Return the parameters of forward; of the model inside where it hands on whatever it gets."""
    while True:
        parameters = inspect.signature(module.forward).parameters
        passes = {p.kind for p in parameters.values()} == {
            inspect.Parameter.VAR_POSITIONAL,
            inspect.Parameter.VAR_KEYWORD,
        }
        inside = next((c for n in _INSIDE if (c := vars(module)["_modules"].get(n))), None)
        if not passes or inside is None:
            return parameters
        module = inside


def _takes(parameters: Parameters, kind: str) -> bool:
    return any(p.kind.name == kind for p in parameters.values())


def _is_required(parameter: inspect.Parameter) -> bool:
    return parameter.default is inspect.Parameter.empty


def _quiet_options(module: nn.Module) -> dict[str, bool]:
    """Options that keep a Hugging Face model from keeping a cache or installing hooks."""
    model, parameters = inner_model(module), inspect.signature(module.forward).parameters
    if not is_hugging_face(model) or not (model is module or is_peft(module)):
        return {}
    config: Any = model.config
    options = {}
    takes_any = _takes(parameters, "VAR_KEYWORD")
    # A cache would be recorded with the calls and grow each time a block is replayed.
    if hasattr(config.get_text_config(), "use_cache") and (takes_any or "use_cache" in parameters):
        options["use_cache"] = False
    # Asking for states or attentions leaves hooks on the model for good, and then it cannot be
    # pickled; the states come from the cut anyway.
    for name in ("output_hidden_states", "output_attentions"):
        if getattr(config, name, False):
            options[name] = False
    return options


@contextmanager
def _no_cache(module: nn.Module) -> Iterator[None]:
    """Turn off the caches of Hugging Face models inside of a module that takes no such option."""
    inside = [] if is_hugging_face(module) else [m for m in module.modules() if is_hugging_face(m)]
    configs: list[Any] = [model.config for model in inside]
    texts = {id(text): text for text in (config.get_text_config() for config in configs)}
    cached = [text for text in texts.values() if getattr(text, "use_cache", False)]
    try:
        for text in cached:
            text.use_cache = False
        yield
    finally:
        for text in cached:
            text.use_cache = True


def read_logits(module: nn.Module, output: Any) -> torch.Tensor | None:
    """Return the ``(n, n_classes)`` logits in a model's output, or None if it has none."""
    module = _without_shell(module)
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
    logits: torch.Tensor = widened(output)
    return logits


def required_logits(module: nn.Module, output: Any) -> torch.Tensor:
    """Return the logits in a model's output, or raise BackboneError."""
    logits = read_logits(module, output)
    if logits is None:
        raise BackboneError(
            f"{type(module).__name__} returns no logits of shape (n, n_classes). Wrap a "
            "classifier, or give a readout=: a module on pooled features of shape (n, d)."
        )
    return logits
