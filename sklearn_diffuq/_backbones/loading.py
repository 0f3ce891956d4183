"""Loading a model by name, and what a model can read."""

import contextlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sklearn_diffuq._backbones.calling import inner_model

_HEAD = re.compile(r"(^|\.)(classifier|score)(\.out_proj)?\.weight$")  # in a PEFT adapter


def is_pipeline(model: Any) -> bool:
    """Tell whether something is a transformers pipeline, without importing transformers."""
    return any(
        cls.__name__ == "Pipeline" and cls.__module__.startswith("transformers.")
        for cls in type(model).__mro__
    )


def read_given(given: Any) -> tuple[nn.Module, Any]:
    """Return a model and what it is used with, from its name, a pipeline, or the model itself."""
    if isinstance(given, str):
        return load_model(given)
    if is_pipeline(given):
        is_image = ModelInputs.of(given.model).kind == "images"
        return given.model, given.image_processor if is_image else given.tokenizer
    return given, None


def load_model(name: str) -> tuple[nn.Module, Any]:
    """Load a pre-trained model.

    Parameters
    ----------
    name : str
        A Hugging Face directory or hub name, the directory of a PEFT adapter, or a timm name, with
        or without "timm:" before it.

    Returns
    -------
    model : torch.nn.Module
        The model, in float32.
    preprocessor : tokenizer, image processor or None
        What a Hugging Face model is saved with.
    """
    directory = Path(name)
    if not directory.exists() and (directory.is_absolute() or name.startswith(".")):
        raise ValueError(f"There is no directory {name!r} to load a model from.")
    if name.startswith("timm:") or (not directory.exists() and _is_timm_name(name)):
        import timm

        return timm.create_model(name.removeprefix("timm:"), pretrained=True), None
    import transformers

    if (directory / "adapter_config.json").is_file():
        return _load_adapter(directory)
    if directory.exists() and not (directory / "config.json").is_file():
        raise ValueError(
            f"{name!r} has no config.json. Give a directory written by `model.save_pretrained`, "
            "the name of a timm model, or the model itself."
        )
    config = transformers.AutoConfig.from_pretrained(name)
    model_class = getattr(transformers, (config.architectures or ["AutoModel"])[0])
    model = model_class.from_pretrained(name, dtype=torch.float32)
    is_image = model.main_input_name == "pixel_values"
    return model, load_preprocessor(name, is_image)


def _load_adapter(directory: Path) -> tuple[nn.Module, Any]:
    """Load a PEFT adapter with the model it belongs to, and the preprocessor of either."""
    try:
        import peft
    except ImportError:
        raise ImportError(
            f"{str(directory)!r} holds a PEFT adapter. Install peft, or give the model merged."
        ) from None
    if not (directory / "adapter_model.safetensors").is_file():
        raise ValueError(
            f"{str(directory)!r} holds a PEFT adapter without adapter_model.safetensors, the only "
            "format that is loaded. Write it with `model.save_pretrained`."
        )
    config = peft.PeftConfig.from_pretrained(str(directory))
    if config.task_type == "SEQ_CLS":
        weights = peft.load_peft_weights(str(directory), device="cpu")
        heads = [len(weight) for key, weight in weights.items() if _HEAD.search(key)]
        model = _load_classifier(config.base_model_name_or_path, heads[-1] if heads else None)
        preprocessor = None
    else:
        model, preprocessor = load_model(config.base_model_name_or_path)
    is_image = ModelInputs.of(model).kind == "images"
    own = directory / ("preprocessor_config.json" if is_image else "tokenizer_config.json")
    if own.is_file():
        preprocessor = load_preprocessor(str(directory), is_image)
    elif preprocessor is None:
        preprocessor = load_preprocessor(config.base_model_name_or_path, is_image)
    return peft.PeftModel.from_pretrained(model, str(directory)).eval(), preprocessor


def _load_classifier(name: str, n_outputs: int | None) -> nn.Module:
    """Load a model of texts for a head of some outputs; None: with the head that it has."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(name)
    if n_outputs is None:
        kinds = config.architectures or ["a model without a head"]
        if not kinds[0].endswith("SequenceClassification"):
            raise ValueError(
                f"The adapter is for a classifier, but neither it nor {name!r} ({kinds[0]}) has a "
                "head. Save the adapter with its head (modules_to_save), or give the model itself."
            )
    elif n_outputs != config.num_labels:
        config.num_labels = n_outputs
    return transformers.AutoModelForSequenceClassification.from_pretrained(
        name, config=config, dtype=torch.float32
    )


def _is_timm_name(name: str) -> bool:
    import timm

    return timm.is_model(name)


def load_preprocessor(name: str, is_image: bool) -> Any:
    """Load the tokenizer, or for images the image processor, of a Hugging Face directory."""
    import transformers

    loader = transformers.AutoImageProcessor if is_image else transformers.AutoTokenizer
    return loader.from_pretrained(name)


@dataclass(frozen=True)
class ModelInputs:
    """What a model reads, as far as it says so.

    Attributes
    ----------
    kind : {"text", "images", "any"}
        "any" if the model does not say.
    max_length : int or None
        Most positions of a text model.
    pad_id : int or None
        Its padding token.
    n_channels : int or None
        Channels of its images.
    image_size : tuple of (int, int) or None
        Height and width of its images, in pixels.
    n_ids : dict of str to int
        How many ids a text model knows, for each input of ids.
    """

    kind: str = "any"
    max_length: int | None = None
    pad_id: int | None = None
    n_channels: int | None = None
    image_size: tuple[int, int] | None = None
    n_ids: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module) -> "ModelInputs":
        """Read the configuration, else the layers, of a model; also of one inside of a wrapper."""
        model = inner_model(model)
        config = getattr(model, "config", None)
        if getattr(model, "main_input_name", None) == "input_ids" and config is not None:
            pad_id = getattr(config, "pad_token_id", None)
            return cls("text", _n_positions(model, config), pad_id, n_ids=_n_ids(model))
        convolution = next((m for m in model.modules() if isinstance(m, torch.nn.Conv2d)), None)
        if convolution is None:
            return cls()
        patches = getattr(model, "patch_embed", None)
        size = getattr(config, "image_size", None)
        if size is None and getattr(patches, "strict_img_size", False):
            size = getattr(patches, "img_size", None)
        size = (size, size) if isinstance(size, int) else size and tuple(size)
        return cls("images", n_channels=convolution.in_channels, image_size=size)


def _n_positions(model: nn.Module, config: Any) -> int | None:
    """Return the number of tokens that a text model has positions for, None if any number."""
    n_positions = getattr(config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        # RoBERTa and its kin count positions from the padding index on
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            taken = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - taken
    return None if n_positions == -1 else n_positions  # XLNet has no limit


def _n_ids(model: nn.Module) -> dict[str, int]:
    """Return the sizes of the embeddings of tokens and of token types."""
    modules = list(model.named_modules())
    with contextlib.suppress(NotImplementedError, AttributeError):
        modules.append(("word_embeddings", model.get_input_embeddings()))  # type: ignore[operator]
    inputs = {"word_embeddings": "input_ids", "token_type_embeddings": "token_type_ids"}
    return {
        inputs[name.rpartition(".")[2]]: module.num_embeddings
        for name, module in modules
        if name.rpartition(".")[2] in inputs and isinstance(module, torch.nn.Embedding)
    }
