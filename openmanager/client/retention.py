"""What is kept how long, and what the tiers hold."""

from __future__ import annotations

from datetime import datetime

from openmanager.api.timeseries.v1 import timeseries_pb2
from openmanager.client import codec, model, rpc
from openmanager.client.rpc import DEADLINE_SECONDS, Rpc


class Retention:
    """Reads and changes the policy of retention, and shows the tiers."""

    def __init__(self, calls: Rpc) -> None:
        self._calls = calls

    async def get(self, *, seconds: float = DEADLINE_SECONDS) -> model.RetentionPolicy:
        """Return the policy."""
        request = timeseries_pb2.GetRetentionPolicyRequest()
        reply = await self._calls.call(rpc.GET_RETENTION_POLICY, request, seconds=seconds)
        return codec.retention_policy(reply.policy)

    async def update(
        self, policy: model.RetentionPolicy, *, seconds: float = DEADLINE_SECONDS
    ) -> model.RetentionPolicy:
        """Replace the policy and return it as it is now.

        AbortedError when it has an etag, as one that was read does, and was changed since.
        """
        request = timeseries_pb2.UpdateRetentionPolicyRequest(policy=codec.retention_message(policy))
        reply = await self._calls.call(rpc.UPDATE_RETENTION_POLICY, request, seconds=seconds)
        return codec.retention_policy(reply.policy)

    async def tiers(self, *, seconds: float = DEADLINE_SECONDS) -> model.Tiers:
        """Return the tiers, the finest first, and the disk they take."""
        return codec.tiers(await self._calls.call(rpc.LIST_TIERS, timeseries_pb2.ListTiersRequest(), seconds=seconds))

    async def rebuild(
        self,
        tier: str = "",
        *,
        start: datetime | int,
        end: datetime | int | None = None,
        seconds: float = DEADLINE_SECONDS,
    ) -> int:
        """Have the buckets of [start, end) of one tier, or of all, computed again; return how many are waiting."""
        request = timeseries_pb2.RebuildTierRequest(tier=tier, start_time=codec.timestamp(start, "start"))
        if end is not None:
            request.end_time.CopyFrom(codec.timestamp(end, "end"))
        return (await self._calls.call(rpc.REBUILD_TIER, request, seconds=seconds)).waiting_bucket_count
