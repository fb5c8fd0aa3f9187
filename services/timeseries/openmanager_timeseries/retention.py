"""What is kept how long: the configured retention of each tier, rules for some series, and legal holds.

A series leaves a file when every row of the file is older than the series is kept: files are small in time. Files that
nobody keeps are deleted, others written anew without the rows that go.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from openmanager import durable
from openmanager.errors import InvalidArgumentError, invalid, missing
from openmanager.frame import check_text
from openmanager_timeseries import sealed
from openmanager_timeseries.catalog import Catalog, Selection
from openmanager_timeseries.evidence import RETENTION, Deletion, Evidence
from openmanager_timeseries.samples import Bools, Ints
from openmanager_timeseries.sealed import Rows, Sealed
from openmanager_timeseries.sealed_store import SealedStore
from openmanager_timeseries.tier import RAW, Tier

MAX_RULES = 100
_SHORTEST, _LONGEST = 60 * 10**9, 100 * 366 * 86_400 * 10**9
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_EVER = np.iinfo(np.int64).min
_NEVER = np.iinfo(np.int64).max

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """Which series, as in the contract."""

    servers: tuple[str, ...] = ()
    server_filter: str = ""
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How long some series are kept in a tier, in all of them where it is empty; nanoseconds."""

    tier: str
    selector: Selector
    retention: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """What must not be deleted: some series in [start, end) nanoseconds, 0 for without end."""

    name: str
    selector: Selector
    start: int = 0
    end: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Rules and holds; `etag` and `update_nanos` are those of the place where they are stored."""

    rules: tuple[Rule, ...] = ()
    holds: tuple[Hold, ...] = ()
    etag: str = ""
    update_nanos: int = 0


@dataclass(frozen=True, slots=True)
class Match:
    """The names that a selector chooses at present."""

    servers: frozenset[str]
    metrics: frozenset[str]

    def mask(self, metrics: Sequence[str], servers: Sequence[str]) -> Bools:
        """Say which pairs are chosen: bool[M, S]."""
        rows = np.asarray([name in self.metrics for name in metrics], np.bool_)
        columns = np.asarray([name in self.servers for name in servers], np.bool_)
        return rows[:, None] & columns[None, :]

    def meets(self, other: Match) -> bool:
        """Say whether both choose some pair."""
        return not (self.servers.isdisjoint(other.servers) or self.metrics.isdisjoint(other.metrics))


@dataclass(slots=True)
class Deleted:
    """What was deleted from a tier so far."""

    rows: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """The policy as it applies to a tier now: retentions by selector, in order, and holds.

    `width` is that of the tier's buckets, 1 for samples: a bucket is held when some of it is.
    """

    default: int
    rules: Sequence[tuple[Match, int]]
    holds: Sequence[tuple[Match, int, int]]
    width: int = 1

    @property
    def shortest(self) -> int:
        """The shortest retention that may apply."""
        return min([self.default, *(each for _, each in self.rules)])

    @property
    def longest(self) -> int:
        """The longest retention that may apply."""
        return max([self.default, *(each for _, each in self.rules)])

    def stays(self, max_time: int, now: int, names: tuple[Sequence[str], Sequence[str]], rows: Rows) -> Bools:
        """Say which rows of a file whose newest is `max_time` stay: bool[K]. `names` are its metrics and servers."""
        metrics, servers = names
        retention = np.full((len(metrics), len(servers)), self.default, np.int64)
        for match, each in self.rules:
            retention[match.mask(metrics, servers)] = each
        keep: Bools = (max_time >= now - retention)[rows.metrics, rows.servers]
        for match, start, end in self.holds:
            held = match.mask(metrics, servers)[rows.metrics, rows.servers]
            keep |= held & (rows.times > max(start, _EVER + self.width) - self.width) & (rows.times < end)
        return keep

    def met(self, file: Sealed) -> bool:
        """Say whether a hold may keep rows of a file."""
        return any(file.meets(max(start, _EVER + self.width) - self.width + 1, end) for _, start, end in self.holds)


class Retention:
    """The policy of one shard and what it has done; its copy on disk is what a start begins with."""

    def __init__(self, *, tiers: Sequence[Tier], raw_retention: int, catalog: Catalog, state: Path) -> None:
        self.policy = Policy()
        # False while neither the copy nor the place of the policy says what is held: nothing is deleted then.
        self.certain = True
        # How often a policy was adopted.
        self.changes = 0
        self.defaults = {RAW: raw_retention, **{tier.name: tier.retention for tier in tiers}}
        self.deleted = {name: Deleted() for name in self.defaults}
        # Of what was deleted and the audit log does not know yet.
        self.evidence = Evidence()
        self._widths = {RAW: 1, **{tier.name: tier.width for tier in tiers}}
        self._catalog = catalog
        self._state = state
        self._looked_at: dict[str, int] = {}
        self._saving = asyncio.Lock()
        self._load()

    def kept_from(self, tier: str, now: int) -> int:
        """Return since when anything of a tier is kept."""
        applying = {self.defaults[tier]}
        for rule in self.policy.rules:
            if rule.tier in {"", tier}:
                applying = {rule.retention} if rule.selector == Selector() else applying | {rule.retention}
        return now - max(applying)

    def kept_of(self, tier: str, now: int, selection: Selection) -> tuple[int, int]:
        """Return since when some of the chosen series are kept in a tier, and since when all of them are."""
        found = self._retentions(tier, selection)
        if not len(found):
            return now - self.defaults[tier], now - self.defaults[tier]
        return now - int(found.max()), now - int(found.min())

    def _retentions(self, tier: str, selection: Selection) -> Ints:
        """Return how long each of the chosen series is kept in a tier (on the event loop)."""
        rules = [rule for rule in self.policy.rules if rule.tier in {"", tier}]
        found = np.full(len(selection.ids) if rules else 1, self.defaults[tier], np.int64)
        for rule in rules:
            some = self._select(rule.selector)
            servers, metrics = self._catalog.server_of(selection.ids), self._catalog.metric_of(selection.ids)
            found[some.servers[servers] & some.metrics[metrics]] = rule.retention
        return found

    def adopt(self, policy: Policy) -> None:
        """Let a checked policy apply."""
        self.policy = policy
        self.certain = True
        self.changes += 1
        self.look_again()

    def look_again(self) -> None:
        """Look at every file anew: what was found out about some was under another policy."""
        self._looked_at.clear()

    # ── what goes ──────────────────────────────────────────────────────────────────────────────────────────────────

    def match(self, selector: Selector) -> Match:
        """Return the names that a selector chooses (on the event loop)."""
        found = self._select(selector)
        servers, metrics = self._catalog.servers, self._catalog.metrics
        return Match(
            frozenset(servers[at] for at in np.flatnonzero(found.servers).tolist()),
            frozenset(metrics[at] for at in np.flatnonzero(found.metrics).tolist()),
        )

    def _select(self, selector: Selector) -> Selection:
        return self._catalog.select(selector.servers, selector.server_filter, selector.metrics)

    def holds(self) -> list[tuple[Match, int, int, str]]:
        """Return what is held: series, [start, end), and the hold's name (on the event loop)."""
        return [
            (self.match(hold.selector), hold.start or _EVER, hold.end or _NEVER, hold.name)
            for hold in self.policy.holds
        ]

    def verdicts(self, tier: str) -> Verdicts:
        """Return the policy as it applies to a tier now (on the event loop)."""
        return Verdicts(
            default=self.defaults[tier],
            rules=[
                (self.match(rule.selector), rule.retention) for rule in self.policy.rules if rule.tier in {"", tier}
            ],
            holds=[held[:3] for held in self.holds()],
            width=self._widths[tier],
        )

    def due(self, files: Sequence[Sealed], verdicts: Verdicts, now: int) -> list[Sealed]:
        """Return the files of which something may go now that did not when they were looked at last."""
        return [
            file
            for file in files
            if not file.about.row_count
            or (
                file.about.max_time < now - verdicts.shortest
                and self._looked_at.get(file.path.name, 0) != _stage(file, verdicts, now)
            )
        ]

    def expire(self, store: SealedStore, file: Sealed, verdicts: Verdicts, now: int) -> tuple[bool, Sealed | None]:
        """Write a file anew without what goes (blocking): whether it is to be replaced, and by what.

        A damaged file is set aside. The newest one stays, empty: its numbers say what need not be read again.
        """
        max_time = file.about.max_time
        newest = file.about.last == store.last
        if not file.about.row_count:
            return not newest, None

        def keep(metrics: Sequence[str], servers: Sequence[str], rows: Rows) -> Bools:
            return verdicts.stays(max_time, now, (metrics, servers), rows)

        if max_time < now - verdicts.longest and not verdicts.met(file):
            going, staying = True, False
        else:
            try:
                going, staying = _divided(store, file, keep)
            except (pa.ArrowException, OSError):
                if not store.drop_unsound(file.about.min_time, max_time + 1):
                    raise
                return False, None
        if not going:
            self._looked_at[file.path.name] = _stage(file, verdicts, now)
            return False, None
        if not staying and not newest:
            return True, None
        made = store.merge([file], keep)
        if made is not None:
            self._looked_at[made.path.name] = _stage(made, verdicts, now)
        return made is not None, made

    def count(self, tier: str, before: Sealed, after: Sealed | None, now: int, why: str = RETENTION) -> None:
        """Take note of what went, at `now` in nanoseconds, and why."""
        done = self.deleted[tier]
        rows = before.about.row_count - (after.about.row_count if after else 0)
        size = before.size_bytes - (after.size_bytes if after else 0)
        done.rows, done.bytes = done.rows + rows, done.bytes + size
        deletion = Deletion(
            tier=tier,
            why=why,
            policy=self.policy.etag,
            rows=rows,
            bytes=size,
            files=1,
            first=before.about.min_time,
            last=before.about.max_time,
            begin=now,
            end=now,
        )
        self.evidence.add(deletion)
        self._looked_at.pop(before.path.name, None)

    # ── on disk ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _load(self) -> None:
        try:
            stored = durable.load(self._state)
            policy = policy_of(stored["policy"])
            deleted = {name: Deleted(**each) for name, each in stored["deleted"].items()}
            self.certain = bool(stored["certain"])
            self.evidence.load(stored.get("evidence", []))
        except FileNotFoundError:
            return
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as err:
            self.certain = False
            log.error(  # noqa: TRY400  (where it happened says nothing)
                "the copy of the retention policy cannot be read, and nothing is deleted until its place answers: %s",
                type(err).__name__,
            )
            return
        self.policy = policy
        self.deleted |= {name: each for name, each in deleted.items() if name in self.defaults}

    def snapshot(self) -> bytes:
        """Return what `save` writes now."""
        deleted = {name: {"rows": each.rows, "bytes": each.bytes} for name, each in self.deleted.items()}
        return durable.encode(
            {
                "policy": document(self.policy),
                "certain": self.certain,
                "deleted": deleted,
                "evidence": self.evidence.document(),
            }
        )

    async def save(self) -> None:
        """Make the policy and the counts durable; OSError when they cannot be.

        Several may want it at once: one file at a time, and the last written is the newest.
        """
        async with self._saving:
            await asyncio.to_thread(durable.replace, self._state, self.snapshot())


def _divided(store: SealedStore, file: Sealed, keep: sealed.Keep) -> tuple[bool, bool]:
    """Return whether rows of a file go, and whether some stay (blocking)."""
    going = staying = False
    with sealed.Reader(file, store.kind) as reader:
        for index in range(len(file.groups)):
            kept = keep(*reader.group(index, ()))
            going, staying = going or not kept.all(), staying or bool(kept.any())
            if going and staying:
                break
    return going, staying


def _stage(file: Sealed, verdicts: Verdicts, now: int) -> int:
    """Return how many of the retentions a file has outlived; it is looked at once for each."""
    retentions = {verdicts.default, *(each for _, each in verdicts.rules)}
    return 1 + sum(file.about.max_time < now - each for each in retentions)


# ── documents ──────────────────────────────────────────────────────────────────────────────────────────────────────


def document(policy: Policy) -> dict[str, object]:
    """Return a policy as a JSON document; numbers beyond 2^53 are texts, as JSON's readers may round them."""
    return {
        "rules": [{**asdict(rule), "retention": str(rule.retention)} for rule in policy.rules],
        "holds": [{**asdict(hold), "start": str(hold.start), "end": str(hold.end)} for hold in policy.holds],
        "etag": policy.etag,
        "update_nanos": str(policy.update_nanos),
    }


def policy_of(stored: Mapping[str, object]) -> Policy:
    """Undo `document`; LookupError, TypeError or ValueError when it is none."""
    rules, holds = stored["rules"], stored["holds"]
    if not isinstance(rules, list) or not isinstance(holds, list):
        raise TypeError("rules and holds are lists")
    return Policy(
        rules=tuple(
            Rule(tier=each["tier"], selector=_selector_of(each["selector"]), retention=int(each["retention"]))
            for each in rules
        ),
        holds=tuple(
            Hold(
                name=each["name"],
                selector=_selector_of(each["selector"]),
                start=int(each["start"]),
                end=int(each["end"]),
                reason=each["reason"],
            )
            for each in holds
        ),
        etag=str(stored.get("etag", "")),
        update_nanos=int(str(stored.get("update_nanos", 0))),
    )


def _selector_of(stored: Mapping[str, object]) -> Selector:
    servers, metrics = stored["servers"], stored["metrics"]
    if not isinstance(servers, list) or not isinstance(metrics, list):
        raise TypeError("servers and metrics are lists")
    return Selector(
        servers=tuple(map(str, servers)), server_filter=str(stored["server_filter"]), metrics=tuple(map(str, metrics))
    )


def check(policy: Policy, retention: Retention) -> Policy:
    """Return a policy that may apply; InvalidArgumentError naming the field otherwise."""
    for name, entries in (("rules", policy.rules), ("holds", policy.holds)):
        if len(entries) > MAX_RULES:
            raise invalid(f"policy.{name}", f"has more than {MAX_RULES} entries")
    for rule in policy.rules:
        if rule.tier and rule.tier not in retention.defaults:
            raise invalid("policy.rules.tier", f"must be one of {', '.join(retention.defaults)}, or empty")
        if not _SHORTEST <= rule.retention <= _LONGEST:
            raise invalid("policy.rules.retention", "must be from 1 minute to 100 years")
        _check_selector(rule.selector, retention, "policy.rules")
    names = [hold.name for hold in policy.holds]
    for hold in policy.holds:
        if not hold.name:
            raise missing("policy.holds.name")
        if not _NAME.fullmatch(hold.name) or names.count(hold.name) > 1:
            raise invalid("policy.holds.name", f"must match {_NAME.pattern} and be there once")
        if hold.end and hold.end <= (hold.start or _EVER):
            raise invalid("policy.holds.end_time", "must be after start_time")
        check_text("policy.holds.reason", hold.reason, 1000)
        _check_selector(hold.selector, retention, "policy.holds")
    check_text("policy.etag", policy.etag, 64)
    return policy


def _check_selector(selector: Selector, retention: Retention, above: str) -> None:
    try:
        retention.match(selector)
    except InvalidArgumentError as err:
        raise InvalidArgumentError(
            f"{above}.{err.message}" if err.field and err.message.startswith(err.field) else err.message,
            reason=err.reason,
            field=f"{above}.{err.field or 'selector'}",
        ) from err
