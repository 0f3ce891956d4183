"""Text corruptions do what their name says and are reproducible."""

import pytest

from sklearn_diffuq.datasets import corrupt_texts

TEXT = "the quick brown fox jumps over lazy dogs while seven wizards quietly write small programs"


def test_typos_keep_the_letters_of_each_word():
    words = TEXT.split()
    changed = corrupt_texts([TEXT], "typos", 5, random_state=0)[0].split()
    assert [sorted(a) for a in changed] == [sorted(b) for b in words]
    n_changed = sum(a != b for a, b in zip(changed, words, strict=True))
    assert 0.3 * len(words) <= n_changed <= 0.5 * len(words) + 1


def test_dropped_words_leave_an_ordered_rest():
    kept = corrupt_texts([TEXT, "one", ""], "drop_words", 4, random_state=0)
    words = TEXT.split()
    position = [words.index(word) for word in kept[0].split()]
    assert position == sorted(position)
    assert len(position) == len(words) - round(0.35 * len(words))
    assert kept[1:].tolist() == ["one", ""]


def test_texts_repeat_and_errors():
    first = corrupt_texts([TEXT] * 3, "typos", random_state=1)
    assert first.tolist() == corrupt_texts([TEXT] * 3, "typos", random_state=1).tolist()
    assert len(set(first)) > 1
    with pytest.raises(ValueError, match="got one str"):
        corrupt_texts(TEXT, "typos")
    with pytest.raises(ValueError, match="corruption must be one of"):
        corrupt_texts([TEXT], "rotate")
