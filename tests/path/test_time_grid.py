"""The time grid: which blocks a step stands for."""

import numpy as np
import pytest

from sklearn_diffuq._path.time_grid import step_counts, steps_of, time_grid


@pytest.mark.parametrize("n_blocks", [1, 2, 5, 12])
def test_time_grid_is_strictly_increasing_and_covers_all_blocks(n_blocks):
    for n_steps in range(1, n_blocks + 1):
        grid = time_grid(n_blocks, n_steps)
        assert grid[0] == 0
        assert grid[-1] == n_blocks
        assert len(grid) == n_steps + 1
        assert np.all(np.diff(grid) >= 1)
        assert np.ptp(np.diff(grid)) <= 1


@pytest.mark.parametrize("n_steps", [0, 7])
def test_time_grid_names_what_is_possible(n_steps):
    with pytest.raises(ValueError, match=f"n_steps={n_steps}.*6 blocks.*between 1 and 6"):
        time_grid(6, n_steps)


def test_steps_are_the_intervals_between_the_times():
    assert steps_of((0, 2, 3, 6)) == ((0, 2), (2, 3), (3, 6))


@pytest.mark.parametrize(
    ("n_steps", "expected"),
    [(None, (12,)), (4, (4,)), (np.int64(4), (4,)), ([6, 3, 6], (6, 3)), ((1, 12), (1, 12))],
)
def test_step_counts_are_told_once_each_and_in_order(n_steps, expected):
    found = step_counts(n_steps, 12)
    assert found == expected
    assert all(type(n) is int for n in found)


@pytest.mark.parametrize("n_steps", [[], "6", 2.0, [3, 1.5], {3}])
def test_step_counts_that_are_no_whole_numbers_are_refused(n_steps):
    with pytest.raises(ValueError, match="n_steps must be an int, a sequence of ints or None"):
        step_counts(n_steps, 12)
