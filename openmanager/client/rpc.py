"""The methods of the mesh and how they are called: with messages, a deadline on every call, our errors back.

The typed client and the command line both stand on this; every method's path is written here and nowhere else.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from openmanager.api.analysis.v1 import alert_pb2, analysis_pb2
from openmanager.api.cache.v1 import cache_pb2
from openmanager.api.gateway.v1 import gateway_pb2
from openmanager.api.metadata.v1 import audit_pb2, identity_pb2, interaction_pb2, metadata_pb2
from openmanager.api.simulator.v1 import simulator_pb2
from openmanager.api.status.v1 import status_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2
from openmanager.client.credential import Credential, Token
from openmanager.errors import (
    CancelledCallError,
    FailedPreconditionError,
    OpenManagerError,
    Reason,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from openmanager.runtime.peer import Peer, backoff, retried
from openmanager.runtime.tls import Tls, client_files

DEADLINE_SECONDS = 5.0
# Every watch tells progress at least every 20 s; one that is silent for longer is dead.
SILENCE_SECONDS = 25.0
PAGE_SIZE = 1000

M = TypeVar("M", bound=Message)
Away = Callable[[OpenManagerError], None]


@dataclass(frozen=True, slots=True)
class Method(Generic[M]):
    """A method: its full service name, its own name, and the class of its replies."""

    service: str
    name: str
    reply: type[M]

    @property
    def path(self) -> str:
        """The path of its calls."""
        return f"/{self.service}/{self.name}"


_API = "openmanager.api"
_GATEWAY = f"{_API}.gateway.v1.GatewayService"
_TIMESERIES = f"{_API}.timeseries.v1.TimeseriesService"
_RETENTION = f"{_API}.timeseries.v1.RetentionService"
_LOG = f"{_API}.timeseries.v1.LogService"
_IMPORT = f"{_API}.timeseries.v1.ImportService"
_ENTRY = f"{_API}.cache.v1.EntryService"
_INTERACTION = f"{_API}.metadata.v1.InteractionService"
_SERVER = f"{_API}.metadata.v1.ServerService"
_USER = f"{_API}.metadata.v1.UserService"
_KEY = f"{_API}.metadata.v1.KeyService"
_SESSION = f"{_API}.metadata.v1.SessionService"
_POLICY = f"{_API}.metadata.v1.PolicyService"
_AUDIT = f"{_API}.metadata.v1.AuditService"
_SIMULATOR = f"{_API}.simulator.v1.SimulatorService"
_FAULT = f"{_API}.simulator.v1.FaultService"
_ANALYSIS = f"{_API}.analysis.v1.AnalysisService"
_ANOMALY = f"{_API}.analysis.v1.AnomalyService"
_RULE = f"{_API}.analysis.v1.RuleService"
_SILENCE = f"{_API}.analysis.v1.SilenceService"
_ALERT = f"{_API}.analysis.v1.AlertService"
_HEALTH: Any = health_pb2

GET_STORAGE_STATUS = Method(_GATEWAY, "GetStorageStatus", gateway_pb2.GetStorageStatusResponse)
WATCH_STORAGE_STATUS = Method(_GATEWAY, "WatchStorageStatus", gateway_pb2.WatchStorageStatusResponse)
GET_SERVER = Method(_GATEWAY, "GetServer", gateway_pb2.GetServerResponse)
LIST_SERVERS = Method(_GATEWAY, "ListServers", gateway_pb2.ListServersResponse)
WATCH_SERVERS = Method(_GATEWAY, "WatchServers", gateway_pb2.WatchServersResponse)
GET_FLEET_SUMMARY = Method(_GATEWAY, "GetFleetSummary", gateway_pb2.GetFleetSummaryResponse)
WRITE_FRAME = Method(_GATEWAY, "WriteFrame", gateway_pb2.WriteFrameResponse)
WRITE_FRAMES = Method(_GATEWAY, "WriteFrames", gateway_pb2.WriteFramesResponse)

WATCH_FRAMES = Method(_TIMESERIES, "WatchFrames", timeseries_pb2.WatchFramesResponse)
QUERY_RANGE = Method(_TIMESERIES, "QueryRange", timeseries_pb2.QueryRangeResponse)
QUERY_LATEST = Method(_TIMESERIES, "QueryLatest", timeseries_pb2.QueryLatestResponse)
LIST_SERIES = Method(_TIMESERIES, "ListSeries", timeseries_pb2.ListSeriesResponse)
DELETE_SERIES = Method(_TIMESERIES, "DeleteSeries", timeseries_pb2.DeleteSeriesResponse)
EXPORT_SERIES = Method(_TIMESERIES, "ExportSeries", timeseries_pb2.ExportSeriesResponse)
GET_RETENTION_POLICY = Method(_RETENTION, "GetRetentionPolicy", timeseries_pb2.GetRetentionPolicyResponse)
UPDATE_RETENTION_POLICY = Method(_RETENTION, "UpdateRetentionPolicy", timeseries_pb2.UpdateRetentionPolicyResponse)
LIST_TIERS = Method(_RETENTION, "ListTiers", timeseries_pb2.ListTiersResponse)
REBUILD_TIER = Method(_RETENTION, "RebuildTier", timeseries_pb2.RebuildTierResponse)
IMPORT_FRAMES = Method(_IMPORT, "ImportFrames", timeseries_pb2.ImportFramesResponse)
IMPORT_ROLLUPS = Method(_IMPORT, "ImportRollups", timeseries_pb2.ImportRollupsResponse)
GET_LEDGER = Method(_LOG, "GetLedger", timeseries_pb2.GetLedgerResponse)
LIST_DEAD_LETTERS = Method(_LOG, "ListDeadLetters", timeseries_pb2.ListDeadLettersResponse)
RETRY_DEAD_LETTERS = Method(_LOG, "RetryDeadLetters", timeseries_pb2.RetryDeadLettersResponse)
DELETE_DEAD_LETTERS = Method(_LOG, "DeleteDeadLetters", timeseries_pb2.DeleteDeadLettersResponse)

ANALYZE_TREND = Method(_ANALYSIS, "AnalyzeTrend", analysis_pb2.AnalyzeTrendResponse)
FORECAST_CAPACITY = Method(_ANALYSIS, "ForecastCapacity", analysis_pb2.ForecastCapacityResponse)
SCORE_DETECTION = Method(_ANALYSIS, "ScoreDetection", analysis_pb2.ScoreDetectionResponse)
DETECT_ANOMALIES = Method(_ANOMALY, "DetectAnomalies", analysis_pb2.DetectAnomaliesResponse)
LIST_ANOMALIES = Method(_ANOMALY, "ListAnomalies", analysis_pb2.ListAnomaliesResponse)
WATCH_ANOMALIES = Method(_ANOMALY, "WatchAnomalies", analysis_pb2.WatchAnomaliesResponse)

CREATE_RULE = Method(_RULE, "CreateRule", alert_pb2.CreateRuleResponse)
GET_RULE = Method(_RULE, "GetRule", alert_pb2.GetRuleResponse)
LIST_RULES = Method(_RULE, "ListRules", alert_pb2.ListRulesResponse)
UPDATE_RULE = Method(_RULE, "UpdateRule", alert_pb2.UpdateRuleResponse)
DELETE_RULE = Method(_RULE, "DeleteRule", alert_pb2.DeleteRuleResponse)
CREATE_SILENCE = Method(_SILENCE, "CreateSilence", alert_pb2.CreateSilenceResponse)
GET_SILENCE = Method(_SILENCE, "GetSilence", alert_pb2.GetSilenceResponse)
LIST_SILENCES = Method(_SILENCE, "ListSilences", alert_pb2.ListSilencesResponse)
UPDATE_SILENCE = Method(_SILENCE, "UpdateSilence", alert_pb2.UpdateSilenceResponse)
EXPIRE_SILENCE = Method(_SILENCE, "ExpireSilence", alert_pb2.ExpireSilenceResponse)
LIST_ALERTS = Method(_ALERT, "ListAlerts", alert_pb2.ListAlertsResponse)
GET_ALERT = Method(_ALERT, "GetAlert", alert_pb2.GetAlertResponse)
WATCH_ALERTS = Method(_ALERT, "WatchAlerts", alert_pb2.WatchAlertsResponse)

GET_ENTRY = Method(_ENTRY, "GetEntry", cache_pb2.GetEntryResponse)
SET_ENTRY = Method(_ENTRY, "SetEntry", cache_pb2.SetEntryResponse)
DELETE_ENTRY = Method(_ENTRY, "DeleteEntry", cache_pb2.DeleteEntryResponse)

CREATE_INVENTORY_SERVER = Method(_SERVER, "CreateServer", metadata_pb2.CreateServerResponse)
GET_INVENTORY_SERVER = Method(_SERVER, "GetServer", metadata_pb2.GetServerResponse)
LIST_INVENTORY_SERVERS = Method(_SERVER, "ListServers", metadata_pb2.ListServersResponse)
UPDATE_INVENTORY_SERVER = Method(_SERVER, "UpdateServer", metadata_pb2.UpdateServerResponse)
DELETE_INVENTORY_SERVER = Method(_SERVER, "DeleteServer", metadata_pb2.DeleteServerResponse)
BATCH_GET_INVENTORY_SERVERS = Method(_SERVER, "BatchGetServers", metadata_pb2.BatchGetServersResponse)

CREATE_USER = Method(_USER, "CreateUser", identity_pb2.CreateUserResponse)
GET_USER = Method(_USER, "GetUser", identity_pb2.GetUserResponse)
LIST_USERS = Method(_USER, "ListUsers", identity_pb2.ListUsersResponse)
UPDATE_USER = Method(_USER, "UpdateUser", identity_pb2.UpdateUserResponse)
DELETE_USER = Method(_USER, "DeleteUser", identity_pb2.DeleteUserResponse)
INVITE_USER = Method(_USER, "InviteUser", identity_pb2.InviteUserResponse)
ACCEPT_INVITATION = Method(_USER, "AcceptInvitation", identity_pb2.AcceptInvitationResponse)
CHANGE_PASSWORD = Method(_USER, "ChangePassword", identity_pb2.ChangePasswordResponse)
CREATE_KEY = Method(_KEY, "CreateKey", identity_pb2.CreateKeyResponse)
GET_KEY = Method(_KEY, "GetKey", identity_pb2.GetKeyResponse)
LIST_KEYS = Method(_KEY, "ListKeys", identity_pb2.ListKeysResponse)
ROTATE_KEY = Method(_KEY, "RotateKey", identity_pb2.RotateKeyResponse)
DELETE_KEY = Method(_KEY, "DeleteKey", identity_pb2.DeleteKeyResponse)
CREATE_SESSION = Method(_SESSION, "CreateSession", identity_pb2.CreateSessionResponse)
REFRESH_SESSION = Method(_SESSION, "RefreshSession", identity_pb2.RefreshSessionResponse)
DELETE_SESSION = Method(_SESSION, "DeleteSession", identity_pb2.DeleteSessionResponse)
GET_IDENTITY = Method(_SESSION, "GetIdentity", identity_pb2.GetIdentityResponse)
CREATE_INTERACTION = Method(_INTERACTION, "CreateInteraction", interaction_pb2.CreateInteractionResponse)
RATE_INTERACTION = Method(_INTERACTION, "RateInteraction", interaction_pb2.RateInteractionResponse)
GET_INTERACTION = Method(_INTERACTION, "GetInteraction", interaction_pb2.GetInteractionResponse)
LIST_INTERACTIONS = Method(_INTERACTION, "ListInteractions", interaction_pb2.ListInteractionsResponse)
FIND_SIMILAR_INTERACTIONS = Method(
    _INTERACTION, "FindSimilarInteractions", interaction_pb2.FindSimilarInteractionsResponse
)
GET_INTERACTION_STATISTICS = Method(
    _INTERACTION, "GetInteractionStatistics", interaction_pb2.GetInteractionStatisticsResponse
)
EXPORT_INTERACTIONS = Method(_INTERACTION, "ExportInteractions", interaction_pb2.ExportInteractionsResponse)
ERASE_INTERACTIONS = Method(_INTERACTION, "EraseInteractions", interaction_pb2.EraseInteractionsResponse)
GET_POLICY = Method(_POLICY, "GetPolicy", metadata_pb2.GetPolicyResponse)
UPDATE_POLICY = Method(_POLICY, "UpdatePolicy", metadata_pb2.UpdatePolicyResponse)
LIST_AUDIT_ENTRIES = Method(_AUDIT, "ListAuditEntries", audit_pb2.ListAuditEntriesResponse)
GET_AUDIT_ENTRY = Method(_AUDIT, "GetAuditEntry", audit_pb2.GetAuditEntryResponse)
EXPORT_AUDIT_LOG = Method(_AUDIT, "ExportAuditLog", audit_pb2.ExportAuditLogResponse)
LIST_CHECKPOINTS = Method(_AUDIT, "ListCheckpoints", audit_pb2.ListCheckpointsResponse)
ERASE_SUBJECT = Method(_AUDIT, "EraseSubject", audit_pb2.EraseSubjectResponse)
GET_AUDIT_STATUS = Method(_AUDIT, "GetAuditStatus", audit_pb2.GetAuditStatusResponse)

GET_SIMULATION = Method(_SIMULATOR, "GetSimulation", simulator_pb2.GetSimulationResponse)
START_SIMULATION = Method(_SIMULATOR, "StartSimulation", simulator_pb2.StartSimulationResponse)
STOP_SIMULATION = Method(_SIMULATOR, "StopSimulation", simulator_pb2.StopSimulationResponse)
ADVANCE_SIMULATION = Method(_SIMULATOR, "AdvanceSimulation", simulator_pb2.AdvanceSimulationResponse)
BACKFILL_HISTORY = Method(_SIMULATOR, "BackfillHistory", simulator_pb2.BackfillHistoryResponse)
LIST_METRICS = Method(_SIMULATOR, "ListMetrics", simulator_pb2.ListMetricsResponse)
INJECT_FAULT = Method(_FAULT, "InjectFault", simulator_pb2.InjectFaultResponse)
LIST_FAULTS = Method(_FAULT, "ListFaults", simulator_pb2.ListFaultsResponse)
CLEAR_FAULT = Method(_FAULT, "ClearFault", simulator_pb2.ClearFaultResponse)

GET_STATUS = Method(f"{_API}.status.v1.StatusService", "GetStatus", status_pb2.GetStatusResponse)
CHECK_HEALTH: Method[Any] = Method("grpc.health.v1.Health", "Check", _HEALTH.HealthCheckResponse)
LIST_HEALTH: Method[Any] = Method("grpc.health.v1.Health", "List", _HEALTH.HealthListResponse)

METHODS: tuple[Method[Any], ...] = tuple(value for value in tuple(globals().values()) if isinstance(value, Method))


class Rpc:
    """Calls to the gateway at `host:port`, encrypted with `tls`; an async context manager that owns the channel.

    A call whose `credential` is refused is made once more, when that can be renewed.
    """

    def __init__(
        self, target: str, *, jitter: random.Random, tls: Tls | None = None, credential: Credential | None = None
    ) -> None:
        self.target = target
        self._files = client_files(tls)
        self._server_name = "" if tls is None else tls.server_name
        self._credential = credential or Token()
        self._jitter = jitter
        self._peer: Peer | None = None

    async def __aenter__(self) -> Self:
        """Connect in the background."""
        names = [name for method in METHODS for name in retried(method.service, [method.name])]
        self._peer = await Peer(
            "the gateway",
            self.target,
            retried=names,
            identify=self._credential.metadata,
            tls=self._files,
            server_name=self._server_name,
        ).__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        """Close the channel; calls under way are cancelled."""
        peer, self._peer = self._peer, None
        if peer is not None:
            await peer.__aexit__(*error)

    @property
    def peer(self) -> Peer:
        """The channel; FailedPreconditionError outside `async with`."""
        if self._peer is None:
            raise FailedPreconditionError("the client is closed: use it inside “async with”")
        return self._peer

    async def call(self, method: Method[M], request: Message | bytes, *, seconds: float = DEADLINE_SECONDS) -> M:
        """Call a unary method."""
        try:
            return await self.peer.unary(method.path, request, method.reply, seconds=seconds)
        except UnauthenticatedError:
            if not await self._credential.renew():
                raise
        return await self.peer.unary(method.path, request, method.reply, seconds=seconds)

    async def stream(
        self, method: Method[M], request: Message | bytes, *, seconds: float | None = DEADLINE_SECONDS
    ) -> AsyncIterator[M]:
        """Call a streaming method; None for a stream without an end, which may only not be silent for too long."""
        begun = False
        try:
            async for reply in self._stream(method, request, seconds=seconds):
                begun = True
                yield reply
        except UnauthenticatedError:
            if begun or not await self._credential.renew():
                raise
        else:
            return
        async for reply in self._stream(method, request, seconds=seconds):
            yield reply

    async def _stream(self, method: Method[M], request: Message | bytes, *, seconds: float | None) -> AsyncIterator[M]:
        replies = closable(self.peer.server_stream(method.path, request, seconds=seconds))
        async with aclosing(replies):
            while True:
                try:
                    async with asyncio.timeout(SILENCE_SECONDS if seconds is None else None):
                        data = await anext(replies)
                except StopAsyncIteration:
                    return
                except TimeoutError as err:
                    raise UnavailableError("the gateway fell silent") from err
                yield method.reply.FromString(data)

    async def converse(self, method: Method[M], requests: AsyncIterator[bytes]) -> AsyncIterator[M]:
        """Call a bidirectional method."""
        async with aclosing(closable(self.peer.bidi_stream(method.path, requests))) as replies:
            async for data in replies:
                yield method.reply.FromString(data)

    async def pages(
        self, method: Method[M], request: Any, *, limit: int | None = None, seconds: float = DEADLINE_SECONDS
    ) -> AsyncIterator[M]:
        """Call a list method for page after page, until `limit` items were sent; `request` is changed."""
        items = next(field.name for field in method.reply.DESCRIPTOR.fields if field.is_repeated)
        wanted = limit
        while wanted is None or wanted > 0:
            request.page_size = PAGE_SIZE if wanted is None else min(wanted, PAGE_SIZE)
            page: Any = await self.call(method, request, seconds=seconds)
            yield page
            request.page_token = page.next_page_token
            if not request.page_token:
                return
            if wanted is not None:
                wanted -= len(getattr(page, items))

    async def resumed(self, begin: Callable[[], AsyncIterator[M]], on_away: Away | None = None) -> AsyncIterator[M]:
        """Yield the messages of an endless stream, begun again with back-off and jitter whenever it breaks.

        The first attempt is not repeated: who was never there cannot come back. `on_away` hears of every break.
        """
        attempt, known = 0, False
        while True:
            failure: OpenManagerError = UnavailableError("the stream ended")
            try:
                async with aclosing(closable(begin())) as messages:
                    async for message in messages:
                        attempt, known = 0, True
                        yield message
            except OpenManagerError as err:
                renewed = isinstance(err, UnauthenticatedError) and await self._credential.renew()
                if not (known and (renewed or _may_come_back(err))):
                    raise
                failure = err
            if on_away is not None:
                on_away(failure)
            await asyncio.sleep(backoff(attempt, self._jitter.random()).total_seconds())
            attempt += 1

    async def watched(self, method: Method[M], request: Any, on_away: Away | None = None) -> AsyncIterator[M]:
        """Yield the messages of an endless watch, each with a `resume_token`, from after which it is begun again.

        `request` is changed: it has the newest token.
        """

        def begin() -> AsyncIterator[M]:
            return self.stream(method, request, seconds=None)

        async with aclosing(closable(self.resumed(begin, on_away))) as replies:
            async for reply in replies:
                request.resume_token = reply.resume_token
                yield reply


def _may_come_back(err: OpenManagerError) -> bool:
    if isinstance(err, ResourceExhaustedError):
        return err.reason in {Reason.WATCH_TOO_SLOW, Reason.OVERLOADED}
    return isinstance(err, UnavailableError | CancelledCallError)


def closable(iterator: AsyncIterator[Any]) -> Any:
    """Return what an async generator function made as what it is: something that can be closed."""
    return iterator
