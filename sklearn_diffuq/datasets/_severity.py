"""Severities 1 to 5, from mild to severe, of every corruption."""

from numbers import Integral


def strength_of(strengths, corruption, severity):
    """Return the strength of a corruption at a severity from a dict name -> five strengths."""
    if corruption not in strengths:
        raise ValueError(f"corruption must be one of {sorted(strengths)}, got {corruption!r}.")
    if not isinstance(severity, Integral) or not 1 <= severity <= 5:
        raise ValueError(f"severity must be an int from 1 to 5, got {severity!r}.")
    return strengths[corruption][severity - 1]
