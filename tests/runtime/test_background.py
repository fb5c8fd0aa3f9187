import asyncio
import logging

import pytest

from openmanager.runtime.background import working


async def _for_ever() -> None:
    await asyncio.Event().wait()


async def _failing() -> None:
    raise ValueError("nobody thought of this")


async def test_work_goes_on_for_the_life_of_the_context_and_no_longer():
    begun, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await _for_ever()
        finally:
            ended.set()

    async with working(work()):
        await begun.wait()
        assert not ended.is_set()
    assert ended.is_set()


async def test_work_that_comes_to_its_end_ends_nothing_else():
    async def short() -> None:
        done.set()

    done = asyncio.Event()
    async with working(short(), _for_ever()):
        await done.wait()


async def test_work_that_fails_ends_the_server_and_says_so(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.CRITICAL), pytest.raises(ExceptionGroup) as failure:
        async with working(_failing(), _for_ever()):
            await _for_ever()
    assert [type(each) for each in failure.value.exceptions] == [ValueError]
    assert "_failing failed: the server ends" in caplog.text


async def test_work_that_has_not_begun_is_ended_too():
    async with working(_for_ever()):
        pass


async def test_what_fails_in_the_context_is_raised_as_it_is():
    with pytest.raises(KeyError, match="mine"):
        async with working(_for_ever()):
            raise KeyError("mine")
