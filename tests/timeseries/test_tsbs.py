"""The devops queries of TSBS, from blocks, tiers and head, give what numpy finds in the same data."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import numpy as np
import pytest
import pytest_asyncio
from openmanager_timeseries.history import History
from openmanager_timeseries.service import latest_frames
from timeseries.shard import END, HOUR, opened, rolled

from bench.history_ask import Reply
from bench.tsbs import METRICS, SHAPES, Data, Question, Shape
from openmanager.api.frame.v1 import frame_pb2
from openmanager.frame import encode

HOURS, HOSTS = 13, 9
HOUR_TICKS = 360


@dataclass(frozen=True)
class Filled:
    history: History
    data: Data


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def filled(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Filled]:
    """Return thirteen hours of which the last is in the head, the rest in blocks and tiers."""
    data = Data.make(END - HOURS * HOUR, HOURS * HOUR_TICKS, HOSTS)
    async with opened(tmp_path_factory.mktemp("history")) as history:
        for hour in range(HOURS):
            if hour == HOURS - 1:
                await rolled(history)
                history.head.drop(0)
            ticks = data.frames(hour * HOUR_TICKS, (hour + 1) * HOUR_TICKS)
            await asyncio.gather(*(history.write(encode(frame)) for frame in ticks))
        yield Filled(history, data)


async def answered(history: History, question: Question) -> np.ndarray:
    if question.asked is None:
        return question.result(Reply.of_latest(latest_frames(history, frame_pb2.Selector(metrics=METRICS))))
    return question.result(Reply.of_answer(await history.query_range(question.asked.query(), 30)))


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("shape", SHAPES, ids=[shape.name for shape in SHAPES])
async def test_the_answer_is_that_of_numpy(filled: Filled, shape: Shape):
    generator = np.random.default_rng(7)
    for _ in range(4):
        question = shape.make(filled.data, generator)
        np.testing.assert_allclose(await answered(filled.history, question), question.expected, rtol=1e-12)


@pytest.mark.asyncio(loop_scope="module")
async def test_wide_steps_are_answered_from_tiers_and_their_edges_from_samples(filled: Filled):
    shape = next(shape for shape in SHAPES if shape.name == "double-groupby-1")
    asked = shape.make(filled.data, np.random.default_rng(7)).asked
    assert asked is not None
    answer = await filled.history.query_range(asked.query(), 30)
    assert {"raw", "1h"} <= {part.tier for part in answer.parts}
    assert answer.partial_reason == ""
