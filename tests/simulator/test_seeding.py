"""Streams that are seeded together are those that numpy seeds one by one."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from openmanager_simulator.noise import BLOCK, Normals, generator
from openmanager_simulator.seeding import sfc64_states

words = st.integers(0, 2**32 - 1)


@given(st.lists(st.integers(0, 2**70), min_size=1, max_size=6), st.lists(words, min_size=1, max_size=5))
@settings(max_examples=100)
def test_the_states_are_those_of_numpy(same: list[int], own: list[int]):
    found = sfc64_states((*same, np.asarray(own)), (len(own),))
    for state, word in zip(found, own, strict=True):
        source = np.random.SFC64(np.random.SeedSequence((*same, word)))
        assert state.tolist() == source.state["state"]["state"].tolist()


@given(st.integers(0, 2**63 - 1), st.integers(0, 100_000), st.integers(-3, 2**34))
@settings(max_examples=30)
def test_noise_is_that_of_the_addressed_streams(seed: int, first: int, block: int):
    noise = Normals(seed)
    out = np.empty((2, 3 * BLOCK, 5), np.float32)
    noise.fill(noise.places(first, 2, block, 3), out)
    for server in range(2):
        for at in range(3):
            stream = generator("noise", seed, first + server, block + at)
            expected = stream.standard_normal((BLOCK, 5), dtype=np.float32)
            assert expected.tobytes() == out[server, at * BLOCK : (at + 1) * BLOCK].tobytes()
