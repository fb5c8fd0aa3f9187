"""The edge of retention and of bulk history."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from openmanager.api.frame.v1 import frame_pb2
from openmanager.api.provenance.v1 import provenance_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2 as pb
from openmanager.errors import OpenManagerError, invalid, missing, store_unavailable
from openmanager.frame import frame_of
from openmanager.runtime.edge import raw
from openmanager_timeseries import retention
from openmanager_timeseries.history import History
from openmanager_timeseries.policy_store import MetadataPolicies, apply
from openmanager_timeseries.retention import Hold, Policy, Rule, Selector
from openmanager_timeseries.rollup_import import RollupImport
from openmanager_timeseries.sealed_store import SealedStore
from openmanager_timeseries.tier import RAW
from openmanager_timeseries.wire import accepted_frames, selector_of, time_of

# A stream that pauses for so long gets its answers.
FLUSH_SECONDS = 1.0


class RetentionService:
    """openmanager.api.timeseries.v1.RetentionService."""

    def __init__(self, history: History, policies: MetadataPolicies) -> None:
        self._history = history
        self._policies = policies

    async def GetRetentionPolicy(  # noqa: N802
        self,
        request: pb.GetRetentionPolicyRequest,  # noqa: ARG002
        context: Any,  # noqa: ARG002
    ) -> pb.GetRetentionPolicyResponse:
        """Return the policy, from our copy when its place is away."""
        now, copy = self._history.clock.now_nanos(), self._history.retention
        degraded = ""
        try:
            policy = await self._policies.get()
        except OpenManagerError:
            policy, degraded = copy.policy, "the metadata service does not answer; this is our copy"
            if not copy.certain:
                raise store_unavailable("the retention policy") from None
        if policy is None:  # none was ever stored, or the place of policies has lost it
            policy = copy.policy
            if policy != Policy():
                degraded = "the metadata service has no policy; this is our copy, which goes on"
        about = provenance_pb2.Provenance(
            source="snapshot" if degraded else "postgresql", degraded=bool(degraded), reason=degraded
        )
        about.as_of_time.FromNanoseconds(now)
        return pb.GetRetentionPolicyResponse(policy=_policy_message(policy), provenance=about)

    async def UpdateRetentionPolicy(  # noqa: N802
        self,
        request: pb.UpdateRetentionPolicyRequest,
        context: Any,  # noqa: ARG002
    ) -> pb.UpdateRetentionPolicyResponse:
        """Store the policy and let it apply."""
        if not request.HasField("policy"):
            raise missing("policy")
        policy = retention.check(_policy(request.policy), self._history.retention)
        stored = await self._policies.put(policy)
        await apply(self._history, stored)
        return pb.UpdateRetentionPolicyResponse(policy=_policy_message(stored))

    async def ListTiers(self, request: pb.ListTiersRequest, context: Any) -> pb.ListTiersResponse:  # noqa: ARG002, N802
        """List the tiers."""
        history, usage = self._history, self._history.usage
        disk = pb.DiskBudget(limit_bytes=usage.limit, used_bytes=usage.used, plan=usage.plan)
        if usage.full_nanos:
            disk.full_time.FromNanoseconds(usage.full_nanos)
        tiers = [_tier(history, RAW, 0, [history.blocks])]
        for at, files in enumerate(history.roller.tiers):
            tier = _tier(history, files.tier.name, files.tier.width, [files.buckets, files.sketches])
            tier.waiting_bucket_count = history.roller.waiting(at)
            tier.sketch_metrics.extend(history.roller.sketch_metrics)
            tiers.append(tier)
        return pb.ListTiersResponse(tiers=tiers, disk=disk)

    async def RebuildTier(self, request: pb.RebuildTierRequest, context: Any) -> pb.RebuildTierResponse:  # noqa: ARG002, N802
        """Have buckets computed again."""
        history = self._history
        start = time_of(request, "start_time", None)
        end = time_of(request, "end_time", history.clock.now_nanos())
        if end <= start:
            raise invalid("end_time", "must be after start_time")
        return pb.RebuildTierResponse(waiting_bucket_count=history.rebuild(request.tier, start, end))


class ImportService:
    """openmanager.api.timeseries.v1.ImportService."""

    def __init__(self, history: History) -> None:
        self._history = history

    @raw
    async def ImportFrames(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:  # noqa: ARG002, N802
        """Append frames whose times may lie in the future."""
        async for ack in accepted_frames(self._history, pb.ImportFramesRequest, requests, any_future=True):
            yield pb.ImportFramesResponse(ack=ack)

    @raw
    async def ImportRollups(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:  # noqa: ARG002, N802
        """Write buckets into a tier, many requests in one file."""
        importing = RollupImport(self._history)
        try:
            async for data in _paced(requests):
                fits, failure = True, None
                try:
                    frame = None if data is None else bytes(frame_of(pb.ImportRollupsRequest, data))
                    fits = frame is None or importing.add(frame)
                except OpenManagerError as err:
                    fits, failure = False, err
                if data is None or not fits or importing.full:
                    for reply in await _flushed(importing):
                        yield reply
                if failure is not None:  # those before it have been answered
                    raise failure
                if not fits and frame is not None:
                    importing.add(frame)
        finally:
            importing.finish()


async def _flushed(importing: RollupImport) -> Sequence[pb.ImportRollupsResponse]:
    return [
        pb.ImportRollupsResponse(accepted_bucket_count=each.accepted, rejected_bucket_count=each.rejected)
        for each in await importing.flush()
    ]


async def _paced(requests: AsyncIterator[bytes]) -> AsyncIterator[bytes | None]:
    """Yield the requests of a stream, and None when it pauses and when it ends."""
    reading: asyncio.Task[bytes] | None = None
    try:
        while True:
            reading = reading or asyncio.ensure_future(anext(requests))
            done, _ = await asyncio.wait([reading], timeout=FLUSH_SECONDS)
            if not done:
                yield None
                await asyncio.wait([reading])
            try:
                data = reading.result()
            except StopAsyncIteration:
                yield None
                return
            reading = None
            yield data
    finally:
        if reading is not None:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


def _tier(history: History, name: str, width: int, stores: Sequence[SealedStore]) -> pb.Tier:
    deleted = history.retention.deleted[name]
    tier = pb.Tier(
        name=name,
        row_count=stores[0].row_count,
        file_count=sum(len(store.files) for store in stores),
        size_bytes=sum(store.size_bytes for store in stores),
        deleted_row_count=deleted.rows,
        freed_bytes=deleted.bytes,
        damaged_file_count=sum(len(store.quarantined) for store in stores),
    )
    tier.retention.FromNanoseconds(history.retention.defaults[name])
    if width:
        tier.resolution.FromNanoseconds(width)
    times = [
        (file.about.min_time, file.about.max_time + max(width, 1)) for file in stores[0].files if file.about.row_count
    ]
    if times:
        tier.oldest_time.FromNanoseconds(min(first for first, _ in times))
        tier.newest_time.FromNanoseconds(max(last for _, last in times))
    return tier


# ── proto ↔ domain ─────────────────────────────────────────────────────────────────────────────────────────────────


def _policy(message: pb.RetentionPolicy) -> Policy:
    for rule in message.rules:
        if not rule.HasField("retention"):
            raise missing("policy.rules.retention")
    return Policy(
        rules=tuple(
            Rule(
                tier=rule.tier,
                selector=_selector(rule.selector, "policy.rules.selector"),
                retention=rule.retention.ToNanoseconds(),
            )
            for rule in message.rules
        ),
        holds=tuple(
            Hold(
                name=hold.name,
                selector=_selector(hold.selector, "policy.holds.selector"),
                start=time_of(hold, "start_time", 0, "policy.holds."),
                end=time_of(hold, "end_time", 0, "policy.holds."),
                reason=hold.reason,
            )
            for hold in message.holds
        ),
        etag=message.etag,
    )


def _selector(message: frame_pb2.Selector, field: str) -> Selector:
    servers, text, metrics = selector_of(message, field)
    return Selector(servers=servers, server_filter=text, metrics=metrics)


def _policy_message(policy: Policy) -> pb.RetentionPolicy:
    message = pb.RetentionPolicy(etag=policy.etag)
    if policy.update_nanos:
        message.update_time.FromNanoseconds(policy.update_nanos)
    for rule in policy.rules:
        added = message.rules.add(tier=rule.tier, selector=_selector_message(rule.selector))
        added.retention.FromNanoseconds(rule.retention)
    for hold in policy.holds:
        held = message.holds.add(name=hold.name, selector=_selector_message(hold.selector), reason=hold.reason)
        if hold.start:
            held.start_time.FromNanoseconds(hold.start)
        if hold.end:
            held.end_time.FromNanoseconds(hold.end)
    return message


def _selector_message(selector: Selector) -> frame_pb2.Selector:
    return frame_pb2.Selector(servers=selector.servers, server_filter=selector.server_filter, metrics=selector.metrics)
