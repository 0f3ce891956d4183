"""The probability path: the law of the hidden states."""
