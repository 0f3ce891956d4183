"""Probabilities of Gaussian logits, without sampling."""

import math

import torch


def probit_logits(mean, variance):
    """Return the logits whose softmax approximates the mean probabilities of Gaussian logits.

    This is the mean-field or probit approximation ``mean / sqrt(1 + pi / 8 variance)``, class by
    class.

    Parameters
    ----------
    mean, variance : torch.Tensor of shape (n, n_classes)
        Moments of the logits.

    Returns
    -------
    logits : torch.Tensor of shape (n, n_classes)
    """
    return mean / torch.sqrt(1 + math.pi / 8 * variance)
