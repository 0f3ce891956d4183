"""Errors and warnings of the package.

Each inherits the builtin class that callers already catch.
"""

__all__ = ["BackboneError", "CalibrationWarning", "ColumnWarning", "ReadoutWarning"]


class BackboneError(ValueError):
    """The wrapped model cannot be cut exactly into embedding, blocks and readout.

    The message names the reason and, where there is one, the way out.
    """


class CalibrationWarning(UserWarning):
    """The held-out calibration did not converge or does not support what was asked for."""


class ColumnWarning(UserWarning):
    """A column of a table says nothing: it is constant in training, or none of its values is known.

    The message names the column.
    """


class ReadoutWarning(UserWarning):
    """The readout of the wrapped model does not match the classes and was replaced, or in doubt."""
