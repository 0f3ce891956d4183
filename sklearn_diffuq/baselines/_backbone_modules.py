"""The torch modules of a backbone, and the number of their parameters."""

import torch


def modules_of(backbone):
    """Return the model and, if there is one, the separate readout as a `ModuleList`."""
    roots = (backbone.module, backbone.custom_readout)
    return torch.nn.ModuleList([root for root in roots if root is not None])


def count_parameters(backbones, *parts):
    """Return the number of parameters of backbones, modules and tensors.

    Parameters
    ----------
    backbones : list of Backbone
        Parameters that they share count once.
    *parts : torch.nn.Module or torch.Tensor
        What a prediction needs besides.
    """
    modules = [modules_of(backbone) for backbone in backbones]
    modules += [part for part in parts if isinstance(part, torch.nn.Module)]
    sizes = {id(p): p.numel() for module in modules for p in module.parameters()}
    return sum(sizes.values()) + sum(p.numel() for p in parts if isinstance(p, torch.Tensor))
