"""Torch modules as parameters: unfitted estimators with the same one have the same hash."""

import copy

import torch

from sklearn_diffuq._backbones.freezing import lock_of


class ModuleParameters:
    """Mixin of estimators with torch modules among their parameters.

    Torch writes the addresses of tensors into a pickle, so that ``joblib.hash``, by which
    ``memory=`` knows an estimator again, differs between copies. Unfitted estimators pickle the
    weights as arrays instead. Fitted ones share modules with what they have fitted, and are left
    to torch.
    """

    def __getstate__(self):
        """Return the state, with the modules of an unfitted estimator as `StableModule`."""
        state = {**super().__getstate__()}
        if not any(name.endswith("_") for name in state):
            for name, value in state.items():
                if isinstance(value, torch.nn.Module):
                    state[name] = StableModule(value)
        return state

    def __setstate__(self, state):
        """Restore the state; what was copied without a pickle is still wrapped."""
        state = {k: v.module if isinstance(v, StableModule) else v for k, v in state.items()}
        super().__setstate__(state)


class StableModule:
    """A torch module that is pickled by the values of its weights; it is unpickled as a module.

    Parameters
    ----------
    module : torch.nn.Module
    """

    def __init__(self, module):
        self.module = module

    def __reduce__(self):
        with lock_of(self.module):
            tensors = [*self.module.parameters(), *self.module.buffers()]
            arrays = {id(tensor): _Values(tensor) for tensor in tensors if _is_plain(tensor)}
            # the memo puts the arrays where the copy would have tensors
            return _unchanged, (copy.deepcopy(self.module, arrays),)


class _Values:
    """Stands for a tensor in a pickle."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __reduce__(self):
        tensor = self.tensor
        values = tensor.detach().cpu()
        if tensor.dtype == torch.bfloat16:  # numpy has none
            values = values.view(torch.int16)
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        kind = tensor.dtype, tensor.requires_grad, is_parameter, vars(tensor)
        return _tensor, (values.numpy(), *kind)


def _is_plain(tensor):
    is_known = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.is_leaf
    is_dense = tensor.layout == torch.strided and not tensor.is_quantized
    where = tensor.device.type in ("cpu", "cuda")
    return is_known and is_dense and where and tensor.is_contiguous() and tensor.itemsize > 1


def _tensor(values, dtype, requires_grad, is_parameter, attributes):
    tensor = torch.from_numpy(values).view(dtype)
    if is_parameter:
        tensor = torch.nn.Parameter(tensor, requires_grad)
    tensor.__dict__.update(attributes)
    return tensor.requires_grad_(requires_grad)


def _unchanged(module):
    return module
