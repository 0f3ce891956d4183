"""Warnings that point at the line of the user, however deep they come from."""

import sys
import warnings

_OURS = ("sklearn_diffuq.", "sklearn.", "joblib.")


def warn_user(message: str, category: type[Warning]) -> None:
    """Warn at the innermost line outside of this package and scikit-learn."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and f"{frame.f_globals.get('__name__', '')}.".startswith(_OURS):
        frame = frame.f_back
        level += 1
    warnings.warn(message, category, stacklevel=level)
