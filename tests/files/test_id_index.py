"""The index of ids is a dict, and much smaller."""

from __future__ import annotations

import sys
import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st

from distill_lab.files.id_index import SMALLEST, IdIndex

IDS = st.one_of(st.text(max_size=4), st.sampled_from(["a", "b", "\ud800", "", "0 a", "1 a"]))
STEPS = st.lists(st.tuples(st.sampled_from(["add", "put", "get"]), IDS, st.integers(0, 2**40)), max_size=60)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(STEPS)
def test_it_is_a_dict(steps: list[tuple[str, str, int]]) -> None:
    index, known = IdIndex(), dict[str, int]()
    for step, name, value in steps:
        if step == "add":
            assert index.add(name, value) == (name not in known)
            known.setdefault(name, value)
        elif step == "put":
            assert index.put(name, value) == known.get(name)
            known[name] = value
        assert index.get(name) == known.get(name)
        assert (name in index) == (name in known)
    assert len(index) == len(known)
    assert all(index.get(name) == value for name, value in known.items())


def test_it_grows_and_stays_small() -> None:
    number = 40 * SMALLEST
    tracemalloc.start()
    index = IdIndex()
    for value in range(number):
        assert index.add(f"train-{value}", value)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert all(index.get(f"train-{value}") == value for value in range(0, number, 97))
    assert index.get("train-x") is None
    assert not index.add("train-5", 1)
    assert index.get("train-5") == 5
    # 24 bytes, at a load between 0.3 and 0.6.
    assert size / number < 24 / 0.3 + 1
    of_a_dict = (
        sys.getsizeof("train-10000") + sys.getsizeof(10_000) + sys.getsizeof(dict.fromkeys(range(1000), 0)) / 1000
    )
    assert size / number < of_a_dict
