"""Graded corruptions of texts, deterministic given a seed."""

import numpy as np
from sklearn.utils import check_random_state

from sklearn_diffuq.datasets._severity import strength_of

# One strength per severity 1..5.
_STRENGTHS = {
    "typos": (0.05, 0.1, 0.2, 0.35, 0.5),  # share of the words
    "drop_words": (0.05, 0.1, 0.2, 0.35, 0.5),
}


def corrupt_texts(X, corruption, severity=3, *, random_state=None):
    """Corrupt texts with a given kind and severity.

    Parameters
    ----------
    X : array-like of str of shape (n_samples,)
        The texts. Words are separated by white space.
    corruption : {"typos", "drop_words"}
        - "typos": swap two neighbouring characters in 5% to 50% of the words.
        - "drop_words": drop 5% to 50% of the words, but never all.
    severity : int, default=3
        From 1 (mild) to 5 (severe).
    random_state : int, RandomState instance or None, default=None
        Seed of the random draws; pass an int for reproducible results.

    Returns
    -------
    X_corrupted : ndarray of shape (n_samples,), object
        The corrupted texts, with words joined by single spaces.

    Raises
    ------
    ValueError
        If `X` is a single string, or for an unknown corruption or severity.

    See Also
    --------
    corrupt_images : Corruptions of images.

    Examples
    --------
    >>> from sklearn_diffuq.datasets import corrupt_texts
    >>> text = "one two three four five six seven eight nine ten"
    >>> len(corrupt_texts([text], "drop_words", severity=5, random_state=0)[0].split())
    5
    """
    if isinstance(X, str):
        raise ValueError("Expected a sequence of texts, got one str. Pass [text] instead.")
    share = strength_of(_STRENGTHS, corruption, severity)
    rng = check_random_state(random_state)
    change = _swap_letters if corruption == "typos" else _drop_words
    texts = list(X)
    corrupted = np.empty(len(texts), dtype=object)
    for i, text in enumerate(texts):
        words = text.split()
        n_changed = min(round(share * len(words)), len(words) - (corruption == "drop_words"))
        chosen = set(rng.permutation(len(words))[: max(n_changed, 0)])
        corrupted[i] = " ".join(change(words, chosen, rng))
    return corrupted


def _swap_letters(words, chosen, rng):
    changed = list(words)
    for i in sorted(chosen):
        word = words[i]
        if len(word) > 1:
            j = rng.randint(len(word) - 1)
            changed[i] = word[:j] + word[j + 1] + word[j] + word[j + 2 :]
    return changed


def _drop_words(words, chosen, rng):
    return [word for i, word in enumerate(words) if i not in chosen]
