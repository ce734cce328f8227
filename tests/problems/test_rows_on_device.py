"""Numbers of rows of a user's own problem, against the rows that are there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from ldro_jax.problems import OnDevice

SIZES = np.array([3, 5])
STARTS = jnp.array([0, 3])
TABLE = np.arange(10.0, dtype=np.float32).reshape(2, 5)
FLAT = np.arange(8.0, dtype=np.float32)[:, None]


def by_slices(arrays, tasks, indices):
    def one(task, index):
        return jax.lax.dynamic_slice(arrays, (task, index), (1, 1))[0]

    return jax.vmap(one)(tasks, indices)


# (arrays, take) of rows that are kept in one way or another.
KEPT = {
    "a table": (TABLE, lambda a, t, i: a[t, i]),
    "a table of what names it": ({"x": TABLE}, lambda a, t, i: {"x": a["x"][t, i][:, None]}),
    "end to end": (FLAT, lambda a, t, i: a[STARTS[t] + i]),
    "end to end, by take": (FLAT, lambda a, t, i: jnp.take(a, STARTS[t] + i, axis=0)),
    "slices": (TABLE, by_slices),
}


def problem(kept, sizes):
    arrays, take = KEPT[kept]
    made = tiny.Distances()
    made.on_device = OnDevice(arrays, sizes, lambda a, key, step, t, i: take(a, t, i))
    return made


@pytest.mark.parametrize("kept", KEPT)
def test_sizes_are_those_of_the_rows_that_are_there(kept):
    problem(kept, SIZES).check_rows()
    problem(kept, SIZES - 1).check_rows()
    with pytest.raises(ValueError, match=r"on_device.sizes must be .*\[3, 6\].*isn't there"):
        problem(kept, SIZES + np.array([0, 1])).check_rows()


def test_sizes_that_are_a_list_draw_the_rows_that_an_array_does(tmp_path):
    runs = [
        tiny.train(tiny.stacked(a_problem=problem("end to end", sizes), size=4), tmp_path / str(i))
        for i, sizes in enumerate((SIZES, list(SIZES.astype(np.uint8))))
    ]
    np.testing.assert_array_equal(runs[1].losses.values, runs[0].losses.values)
    assert np.isfinite(runs[0].losses.values).all()
