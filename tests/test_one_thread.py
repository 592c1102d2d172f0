"""Linear algebra is held to one thread inside, and to as many as before outside."""

import numpy as np
from threadpoolctl import threadpool_info

from sft_atlas.machine import one_thread


def num_threads() -> list[int]:
    return [library["num_threads"] for library in threadpool_info()]


def test_statistics_take_one_thread_and_give_the_others_back() -> None:
    np.linalg.inv(np.eye(3))
    with one_thread():
        pass  # scipy brings a library of its own
    before = num_threads()
    with one_thread():
        assert set(num_threads()) == {1}
    assert num_threads() == before
