"""The wrapped classifier as JSON and tensors, and back; files are the business of `_persistence`.

A table model is stored whole. Of any other model only its readout, its name and what recognises it
are stored, and the weights where fine-tuning has changed them.
"""

import copy
import hashlib
from dataclasses import asdict
from numbers import Integral

import numpy as np
import torch
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import OrdinalEncoder, QuantileTransformer

from sklearn_diffuq._backbones.backbone import Backbone
from sklearn_diffuq._backbones.ft_transformer import FTTransformer
from sklearn_diffuq._backbones.probe import Cut
from sklearn_diffuq._inputs.table_encoder import TableEncoder
from sklearn_diffuq._training.seeds import own_torch_seed
from sklearn_diffuq._wrapped.backbone_classifier import resolve_device
from sklearn_diffuq._wrapped.ft_transformer_classifier import FTTransformerClassifier
from sklearn_diffuq._wrapped.transformer_classifier import TransformerClassifier


def plain(value):
    """Return a parameter as JSON knows it, else None."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, torch.device):
        value = str(value)
    if isinstance(value, (tuple, list)) and value and all(isinstance(v, Integral) for v in value):
        return [int(v) for v in value]
    return value if isinstance(value, (str, bool, int, float)) else None


def column_names(owner):
    """Return the names of the features as JSON, None if there are none."""
    names = getattr(owner, "feature_names_in_", None)
    return None if names is None else names.tolist()


def part(tensors, prefix):
    """Return the tensors below a prefix, named without it."""
    start = prefix + "."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def wrapped_state(wrapped, with_weights):
    """Return a fitted wrapped classifier as JSON and as tensors.

    Parameters
    ----------
    wrapped : estimator
    with_weights : bool
        Whether its weights are no longer those of the model it was made from. Those of a table
        model and of a fine-tuned one are always stored.

    Returns
    -------
    config : dict
    tensors : dict of str to Tensor
    """
    backbone = wrapped.backbone_
    if getattr(wrapped, "_table", None) is not None:  # a TransformerClassifier without a model
        wrapped = wrapped._table
    config = {
        "class": type(wrapped).__name__,
        "n_features_in": getattr(wrapped, "n_features_in_", None),
        "feature_names_in": column_names(wrapped),
        "columns": getattr(backbone, "columns", None),
        "cut": asdict(backbone._probed()),
        "model": describe_model(backbone.module, backbone.path),
    }
    tensors = _readout_state(backbone.custom_readout)
    # A subclass may hold what we do not know: it has to be given to `load`.
    config["params"] = None
    if type(wrapped) in (FTTransformerClassifier, TransformerClassifier):
        config["params"] = {k: plain(v) for k, v in wrapped.get_params(deep=False).items()}
        config["n_tokens"], config["history"] = wrapped._n_tokens, wrapped.history_
    if type(wrapped) is FTTransformerClassifier:
        config["encoder"], encoder_tensors = _encoder_state(wrapped._encoder)
        tensors |= encoder_tensors
    elif type(wrapped) is TransformerClassifier:
        given = wrapped.preprocessor
        is_object = given is not None and not isinstance(given, str)
        config["preprocessor"] = type(given).__name__ if is_object else None
    is_table = type(wrapped) is FTTransformerClassifier
    if with_weights or is_table or getattr(wrapped, "finetune", False):
        tensors |= {f"module.{k}": v for k, v in backbone.module.state_dict().items()}
    return config, tensors


def _readout_state(readout):
    if readout is None:
        return {}
    if type(readout) is not torch.nn.Linear:
        raise ValueError(
            f"A readout of type {type(readout).__name__} cannot be saved, only a torch.nn.Linear."
        )
    return {f"readout.{k}": v for k, v in readout.state_dict().items()}


def describe_model(module, path):
    """Return what a model is recognised by, for config.json and for error messages.

    Parameters
    ----------
    module : torch.nn.Module
    path : str
        Dotted path of its blocks.

    Returns
    -------
    description : dict
        ``sha256`` is that of all weights.
    """
    try:
        blocks = list(module.get_submodule(path))
    except (AttributeError, TypeError):
        blocks = []
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu().contiguous()
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return {
        "class": type(module).__name__,
        "blocks": path,
        "n_blocks": len(blocks),
        "n_block_parameters": sum(p.numel() for block in blocks for p in block.parameters()),
        "sha256": digest.hexdigest(),
    }


def _in_words(model):
    return (
        f"{model['class']} with {model['n_blocks']} blocks in {model['blocks']!r} of "
        f"{model['n_block_parameters']} parameters, weights {model['sha256'][:12]}"
    )


def _check_same(expected, got):
    if any(expected[name] != got[name] for name in expected if name != "class"):
        raise ValueError(
            f"The wrapped model is not the one that was saved: expected {_in_words(expected)}; "
            f"got {_in_words(got)}."
        )


def load_wrapped(config, tensors, classes, estimator):
    """Return the fitted wrapped classifier that `wrapped_state` described.

    Parameters
    ----------
    config : dict
    tensors : dict of str to Tensor
    classes : ndarray of shape (n_classes,)
    estimator : estimator, torch.nn.Module, str or None
        As for `PersistenceMixin.load`; it is not changed.

    Returns
    -------
    wrapped : estimator
    """
    if isinstance(estimator, FrozenEstimator):
        estimator = estimator.estimator
    if hasattr(estimator, "backbone_"):
        wrapped = _given_classifier(classes, estimator)
    elif config["params"] is None:
        raise ValueError(
            f"The wrapped classifier was not saved: expected estimator=, a fitted "
            f"{config['class']} of {_in_words(config['model'])}; got {_kind(estimator)}."
        )
    elif config["class"] == "FTTransformerClassifier":
        if estimator is not None:
            raise ValueError(
                "The wrapped FTTransformerClassifier was saved whole: expected estimator=None, or "
                f"the fitted FTTransformerClassifier; got {_kind(estimator)}."
            )
        wrapped = _table_classifier(config, tensors, classes)
    else:
        wrapped = _transformer_classifier(config, classes, estimator)
    _set_backbone(wrapped, config, tensors)
    return wrapped


def _given_classifier(classes, estimator):
    if not np.array_equal(estimator.classes_, classes):
        raise ValueError(
            "The wrapped classifier is not the one that was saved: expected the classes "
            f"{classes.tolist()}, got {estimator.classes_.tolist()}."
        )
    wrapped = copy.copy(estimator)
    wrapped.module_ = estimator.backbone_.module
    return wrapped


def _set_backbone(wrapped, config, tensors):
    """Give the classifier the saved weights and readout; check that the model is the saved one."""
    module, path, readout = wrapped.module_, config["model"]["blocks"], None
    weights = part(tensors, "module")
    if weights:
        module = copy.deepcopy(module)
        try:
            module.load_state_dict(weights)
        except RuntimeError:
            pass  # the weights do not fit: said below
    _check_same(config["model"], describe_model(module, path))
    weights = part(tensors, "readout")
    if weights:
        readout = torch.nn.Linear(*reversed(weights["weight"].shape))
        readout.load_state_dict(weights)
        readout.to(next(module.parameters()).device)
    backbone = Backbone(module, blocks=path, readout=readout)
    backbone.columns = config["columns"]
    backbone._cut = Cut(**config["cut"])  # not probed again, as after unpickling
    for name in ("slots", "extras"):  # JSON has no tuples
        setattr(backbone._cut, name, tuple(config["cut"][name]))
    wrapped.module_, wrapped.backbone_ = module, backbone


def _kind(estimator):
    if estimator is None or isinstance(estimator, str):
        return repr(estimator)
    fitted = "" if isinstance(estimator, torch.nn.Module) else ", not fitted"
    return f"{type(estimator).__name__}{fitted}"


def _device(name):
    """Return the device to load to: as it was, unless it was a GPU and there is none."""
    return resolve_device(name if torch.cuda.is_available() else "cpu")


def _set_fitted(wrapped, config, classes):
    wrapped.classes_, wrapped.history_ = classes, config["history"]
    wrapped._n_tokens = config["n_tokens"]
    if config["n_features_in"] is not None:
        wrapped.n_features_in_ = config["n_features_in"]
    if config["feature_names_in"] is not None:
        wrapped.feature_names_in_ = np.array(config["feature_names_in"], dtype=object)
    return wrapped


def _table_classifier(config, tensors, classes):
    params, encoder = config["params"], _load_encoder(config["encoder"], tensors)
    wrapped = FTTransformerClassifier(**params)
    architecture = {name: params[name] for name in ("width", "n_blocks", "n_heads", "dropout")}
    with own_torch_seed(0, "cpu"):  # the initial weights will be overwritten
        module = FTTransformer(
            encoder.n_numeric, encoder.cardinalities, len(classes), **architecture
        )
    wrapped.module_ = module.eval().to(_device(wrapped.device))
    wrapped._encoder, wrapped.n_iter_ = encoder, len(config["history"])
    return _set_fitted(wrapped, config, classes)


def _transformer_classifier(config, classes, estimator):
    params = dict(config["params"])
    given = {"model": estimator}
    if isinstance(estimator, TransformerClassifier):
        given = {"model": estimator.model, "preprocessor": estimator.preprocessor}
    params |= {name: value for name, value in given.items() if value is not None}
    if not isinstance(params["model"], (str, torch.nn.Module)):
        raise ValueError(
            f"The wrapped model was not saved: expected estimator=, a {_in_words(config['model'])} "
            "(the torch model, its name, or a TransformerClassifier with it); got "
            f"{_kind(estimator)}."
        )
    if params["preprocessor"] is None and config["preprocessor"] is not None:
        raise ValueError(
            f"The preprocessor was not saved: expected estimator=TransformerClassifier(model, "
            f"preprocessor=...) with a {config['preprocessor']}, or the fitted wrapped "
            f"classifier; got {_kind(estimator)}."
        )
    wrapped = TransformerClassifier(**params)
    wrapped._table = None
    try:
        wrapped._set_model(_device(wrapped.device))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The wrapped model cannot be loaded from {_kind(params['model'])}: expected a "
            f"{_in_words(config['model'])}; got: {error} Give the model, or its new name, as "
            "estimator=."
        ) from error
    return _set_fitted(wrapped, config, classes)


def _encoder_state(encoder):
    config = {
        "seed": encoder.seed,
        "n_numeric": encoder.n_numeric,
        "cardinalities": encoder.cardinalities,
        "is_category": encoder._is_category.tolist(),
    }
    tensors = {}
    if encoder.n_numeric:
        tensors = {
            "encoder.quantiles": torch.from_numpy(encoder._quantiles.quantiles_),
            "encoder.references": torch.from_numpy(encoder._quantiles.references_),
        }
    if encoder.cardinalities:
        config["categories"] = [
            [_category(value) for value in known] for known in encoder._ordinal.categories_
        ]
    return config, tensors


def _category(value):
    """Return a category as JSON knows it; the missing one, NaN, is null."""
    known = plain(value)
    if known is None:
        raise ValueError(
            f"A category of type {type(value).__name__} ({value!r}) cannot be saved; categories "
            "must be str, int, float or bool. Convert the column, for example by astype(str), "
            "before fit."
        )
    return None if known != known else known


def _load_encoder(config, tensors):
    encoder = TableEncoder(config["seed"])
    encoder.n_numeric, encoder.cardinalities = config["n_numeric"], config["cardinalities"]
    encoder._is_category = np.array(config["is_category"], dtype=bool)
    if encoder.n_numeric:
        quantiles = QuantileTransformer(output_distribution="normal", random_state=encoder.seed)
        quantiles.quantiles_ = tensors["encoder.quantiles"].numpy()
        quantiles.references_ = tensors["encoder.references"].numpy()
        quantiles.n_quantiles_, quantiles.n_features_in_ = quantiles.quantiles_.shape
        quantiles.n_quantiles = quantiles.n_quantiles_
        encoder._quantiles = quantiles
    if encoder.cardinalities:
        # fitted again, on rows that hold every category
        columns = [[np.nan if v is None else v for v in c] for c in config["categories"]]
        rows = np.empty((max(map(len, columns)), len(columns)), dtype=object)
        for j, known in enumerate(columns):
            rows[:, j] = (known * len(rows))[: len(rows)]
        encoder._ordinal = OrdinalEncoder(
            handle_unknown="use_encoded_value", unknown_value=-1, dtype=np.float64
        ).fit(rows)
    return encoder


def upgrade_wrapped(state):
    return state
