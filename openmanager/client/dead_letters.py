"""What consumers of the log could not take."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from openmanager.api.timeseries.v1 import timeseries_pb2
from openmanager.client import codec, model, rpc
from openmanager.client.rpc import DEADLINE_SECONDS, Rpc

RETRY_SECONDS = 120.0


class DeadLetters:
    """Lists dead letters, has them tried again, forgets them."""

    def __init__(self, calls: Rpc) -> None:
        self._calls = calls

    async def list(
        self, consumer: str = "", *, limit: int | None = None, seconds: float = DEADLINE_SECONDS
    ) -> AsyncIterator[model.DeadLetter]:
        """Yield the letters of a consumer, or all, oldest first, page after page; `seconds` is for one page."""
        request = timeseries_pb2.ListDeadLettersRequest(consumer=consumer)
        async for page in self._calls.pages(rpc.LIST_DEAD_LETTERS, request, limit=limit, seconds=seconds):
            for each in page.dead_letters:
                yield codec.dead_letter(each)

    async def retry(
        self, consumer: str = "", ids: Sequence[str] = (), *, seconds: float = RETRY_SECONDS
    ) -> tuple[int, int]:
        """Give letters to their consumer again; return how many it took, and how many it refused again.

        All of a consumer, or those with some ids. UnavailableError when it cannot take anything now.
        """
        request = timeseries_pb2.RetryDeadLettersRequest(consumer=consumer, ids=ids)
        reply = await self._calls.call(rpc.RETRY_DEAD_LETTERS, request, seconds=seconds)
        return reply.taken_count, reply.refused_count

    async def delete(self, consumer: str = "", ids: Sequence[str] = (), *, seconds: float = DEADLINE_SECONDS) -> int:
        """Forget letters, all of a consumer or those with some ids; return how many."""
        request = timeseries_pb2.DeleteDeadLettersRequest(consumer=consumer, ids=ids)
        return (await self._calls.call(rpc.DELETE_DEAD_LETTERS, request, seconds=seconds)).deleted_count
