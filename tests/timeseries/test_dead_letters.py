"""What a consumer cannot take: set aside with the reason, counted, listed, tried again, forgotten."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from conftest import wait_until
from openmanager_timeseries import consumer as consuming
from openmanager_timeseries import dead_letter, engine_link
from openmanager_timeseries.dead_letter import LETTERS, DeadLetters, Refusal, windows
from openmanager_timeseries.disk import PosixDisk
from openmanager_timeseries.engine_link import EngineLink
from openmanager_timeseries.engines.port import Refused
from openmanager_timeseries.history import History
from openmanager_timeseries.ledger import Ledger, Stretch
from openmanager_timeseries.log_service import LogService
from openmanager_timeseries.record import Record
from timeseries.delivery import PickyEngine, arrived, running, written
from timeseries.faulty_disk import FaultyDisk
from timeseries.shard import DAY, NOW, SECOND, StillClock, frame, opened

from openmanager.api.status.v1 import status_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2 as pb
from openmanager.errors import (
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from openmanager.frame import Frame, decode_trusted, encode
from openmanager.runtime.clock import SystemClock
from openmanager.runtime.module import ServerConfig, Service
from openmanager.runtime.peer import Peer
from openmanager.runtime.server import Server

SERVICE = "/openmanager.api.timeseries.v1.LogService"


def refusal(first: int = 1, last: int = 0, *, reason: str = "no", servers: tuple[str, ...] = ("a",), count: int = 3):
    return Refusal(
        reason=reason,
        servers=servers,
        start=first * SECOND,
        end=(last or first) * SECOND + 1,
        first=first,
        last=last or first,
        sample_count=count,
    )


def refused(ledger: Ledger, name: str, about: Refusal) -> None:
    """Count what a consumer was given and refused."""
    before, count = ledger.open_books(name).counted_accepted, about.sample_count
    ledger.taken(name, Stretch(position=about.last, before=before, accepted=before + count, samples=count), [about])


# ── letters ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_reason_that_goes_on_makes_one_letter():
    letters = DeadLetters(FaultyDisk())
    for at in (5, 6, 9):
        letters.add("influxdb", refusal(at), now=at)
    (letter,) = letters.of()
    assert (letter.refusal.first, letter.refusal.last, letter.refusal.sample_count) == (5, 9, 9)
    assert (letter.refusal.start, letter.refusal.end) == (5 * SECOND, 9 * SECOND + 1)
    assert (letter.created, letter.updated) == (5, 9)


def test_what_is_delivered_and_refused_again_is_counted_once():
    ledger = Ledger(FaultyDisk(), StillClock())
    refused(ledger, "influxdb", refusal(5, 9))
    refused(ledger, "influxdb", refusal(5, 7))
    refused(ledger, "influxdb", refusal(8, 9))
    refused(ledger, "influxdb", refusal(10, 12))
    assert ledger.books["influxdb"].dead_lettered == 6
    assert [letter.refusal.sample_count for letter in ledger.letters.of()] == [6]


def test_a_letter_that_has_grown_while_it_was_tried_keeps_what_it_has_grown_by():
    ledger = Ledger(FaultyDisk(), StillClock())
    refused(ledger, "influxdb", refusal(5))
    (before,) = ledger.letters.of()
    refused(ledger, "influxdb", refusal(6, count=4))
    ledger.taken_after_all(before)
    (after,) = ledger.letters.of()
    assert (after.id, after.refusal.sample_count, after.refusal.first, after.refusal.last) == ("1", 4, 6, 6)
    assert ledger.books["influxdb"].dead_lettered == 4
    ledger.letters.refused_again(before, "still no", now=3)
    (after,) = ledger.letters.of()
    assert (after.refusal.sample_count, after.refusal.reason, after.retries) == (4, "still no", 1)
    ledger.taken_after_all(after)
    ledger.taken_after_all(after)
    assert (ledger.letters.of(), ledger.books["influxdb"].dead_lettered) == ([], 0)
    assert ledger.books["influxdb"].delivered == 7
    assert ledger.unbalanced() == []


@pytest.mark.parametrize(
    "other",
    [
        ("victoriametrics", refusal(6)),
        ("influxdb", refusal(6, reason="because")),
        ("influxdb", refusal(6, servers=("a", "b"))),
        ("influxdb", refusal(1_000_000)),
    ],
    ids=["consumer", "reason", "servers", "long after"],
)
def test_what_differs_makes_another_letter(other: tuple[str, Refusal]):
    letters = DeadLetters(FaultyDisk())
    letters.add("influxdb", refusal(5), now=1)
    letters.add(*other, now=2)
    assert [letter.id for letter in letters.of()] == ["1", "2"]


def test_the_oldest_letters_make_room_and_that_is_counted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dead_letter, "MAX_LETTERS", 3)
    letters = DeadLetters(FaultyDisk())
    for at in range(5):
        letters.add("influxdb", refusal(1, reason=str(at)), now=at)
    assert [letter.refusal.reason for letter in letters.of()] == ["2", "3", "4"]
    assert letters.forgotten == 2
    monkeypatch.setattr(dead_letter, "MAX_CHARACTERS", 10)
    letters.add("influxdb", refusal(1, servers=("a" * 20,)), now=9)
    assert [letter.id for letter in letters.of()] == ["6"]


def test_letters_are_there_after_a_restart_and_their_ids_are_not_given_again():
    disk = FaultyDisk()
    letters = DeadLetters(disk)
    assert letters.encode() is None
    letters.add("influxdb", refusal(5), now=1)
    letters.add("influxdb", refusal(5, reason="other"), now=2)
    letters.remove(letters.of()[1])
    raw = letters.encode()
    assert raw is not None
    letters.save(raw)
    assert letters.encode() is None
    again = DeadLetters(disk)
    assert again.of() == letters.of()
    again.add("influxdb", refusal(7, reason="new"), now=3)
    assert [letter.id for letter in again.of()] == ["1", "3"]


@pytest.mark.parametrize("content", [b"", b"rubbish", b'{"letters": 1}\n00000000', b"\xff\xfe\n12"])
def test_damaged_letters_never_keep_a_shard_from_starting(content: bytes):
    disk = FaultyDisk()
    disk.replace(LETTERS, content)
    letters = DeadLetters(disk)
    assert letters.of() == []
    assert disk.read(f"{LETTERS}.damaged", 0, 99) == content
    letters.add("influxdb", refusal(5), now=1)


def test_letters_are_found_by_consumer_and_id():
    letters = DeadLetters(FaultyDisk())
    letters.add("influxdb", refusal(5), now=1)
    letters.add("registrar", refusal(5), now=1)
    assert [each.id for each in letters.find("registrar", ())] == ["2"]
    assert [each.id for each in letters.find("", ("2", "1", "2"))] == ["2", "1"]
    for consumer, ids in (("influxdb", ("2",)), ("", ("3",)), ("", ("x",))):
        with pytest.raises(NotFoundError):
            letters.find(consumer, ids)


def test_a_letter_is_read_in_parts():
    parts = windows(replace(refusal(servers=("a", "b", "c")), start=5, end=16), 10, 2)
    assert list(parts) == [(("a", "b"), 5, 15), (("c",), 5, 15), (("a", "b"), 15, 16), (("c",), 15, 16)]


# ── delivering ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Taker:
    """A consumer that fails as it is told, and remembers what it took."""

    name = "influxdb"
    take_seconds = 5.0
    rewinds = 0

    def __init__(self, failure: Callable[[Frame], Exception | None]) -> None:
        self.failure = failure
        self.taken: list[int] = []
        self.tries: list[list[int]] = []

    async def take(self, records: Sequence[Record]) -> Sequence[Refusal]:
        self.tries.append([record.position for record in records])
        for record in records:
            if failure := self.failure(decode_trusted(pb.WriteFrameRequest().frame.FromString(bytes(record.payload)))):
                raise failure
        self.taken += [record.position for record in records]
        return ()

    async def take_again(self, refusal: Refusal, done: Callable[[int], None]) -> str:
        raise NotImplementedError

    def settled(self, position: int, accepted: int) -> tuple[int, int]:
        return position, accepted

    def cut_loose(self) -> None:
        pass


@pytest.mark.parametrize(
    ("failure", "reason", "tries"),
    [
        (InvalidArgumentError("not like that"), "not like that", 1),
        (FailedPreconditionError("never"), "never", 1),
        (ZeroDivisionError(), "it fails on it: see the logs", consuming.MAX_TRIES),
        (InternalError("internal error 4711"), "it fails on it: see the logs", consuming.MAX_TRIES),
    ],
    ids=["refused", "impossible", "defect", "defect of a peer"],
)
async def test_a_frame_that_cannot_be_taken_is_set_aside_and_the_others_are_taken(
    tmp_path: Path, failure: Exception, reason: str, tries: int
):
    async with opened(tmp_path) as history:
        await written(history, ["a", "b", "bad", "c", "d", "e", "bad", "f"])
        taker = Taker(lambda frame: failure if "bad" in frame.servers else None)
        async with running(history, taker):
            await arrived(history)
        assert sorted(taker.taken) == [1, 2, 4, 5, 6, 8]
        assert taker.tries.count([3]) == tries
        (letter,) = history.ledger.letters.of("influxdb")
        about = letter.refusal
        assert (about.reason, about.servers, about.first, about.last, about.sample_count) == (reason, ("bad",), 3, 7, 4)
        assert (about.start, about.end) == (NOW - 6 * SECOND, NOW - 2 * SECOND + 1)
        row = history.ledger.row("influxdb", history.log)
        assert (row.delivered_sample_count, row.dead_lettered_sample_count, row.waiting_sample_count) == (12, 4, 0)
        assert row.state == status_pb2.STORAGE_STATE_OK


@pytest.mark.parametrize(
    ("failure", "state", "reason"),
    [
        (UnavailableError("it is away"), status_pb2.STORAGE_STATE_DOWN, "it is away"),
        (TimeoutError(), status_pb2.STORAGE_STATE_HUNG, "it does not answer in time"),
        (OSError(24, "no file is left: /secret"), status_pb2.STORAGE_STATE_DOWN, "OSError"),
    ],
    ids=["down", "hung", "no descriptor"],
)
async def test_a_store_that_is_away_is_waited_for_and_said(tmp_path: Path, failure: Exception, state: int, reason: str):
    async with opened(tmp_path) as history:
        await written(history, ["a", "b"])
        away = True
        taker = Taker(lambda _: failure if away else None)
        async with running(history, taker):

            async def is_tried() -> bool:
                return len(taker.tries) > 3 * consuming.MAX_TRIES

            await wait_until(is_tried)
            row = history.ledger.row("influxdb", history.log)
            assert (row.state, row.reason, row.waiting_sample_count) == (state, reason, 4)
            assert row.since_time.ToNanoseconds() == NOW
            away = False
            await arrived(history)
        row = history.ledger.row("influxdb", history.log)
        assert (row.state, row.reason, row.delivered_sample_count) == (status_pb2.STORAGE_STATE_OK, "", 4)
        assert history.ledger.letters.of() == []


async def test_letters_are_durable_before_the_position_that_leaves_them_behind(tmp_path: Path):
    async with opened(tmp_path) as history:
        await written(history, ["bad", "a"])
        async with running(
            history, Taker(lambda frame: InvalidArgumentError("no") if "bad" in frame.servers else None)
        ):
            await arrived(history)
        await history.ledger.save(history.log)
    ledger = Ledger(PosixDisk(tmp_path / "log"), SystemClock())
    assert [letter.refusal.first for letter in ledger.letters.of("influxdb")] == [1]
    assert ledger.books["influxdb"].dead_lettered == 2


# ── an engine ──────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.asynccontextmanager
async def linked(folder: Path) -> AsyncIterator[tuple[History, PickyEngine, EngineLink, Peer]]:
    """A shard with an engine that has been given all there is, and its LogService."""
    async with opened(folder) as history:
        engine = PickyEngine()
        link = EngineLink(engine, history, history.clock, folder / "engine.json")
        await link.look()
        await written(history, ["a", "bad", "b", "bad"])
        async with running(history, link):
            await arrived(history)
            servicers = {"openmanager.api.timeseries.v1.LogService": LogService(history, {link.name: link})}
            server = Server(
                service=Service(servicers=servicers),
                name="test",
                address="127.0.0.1:0",
                config=ServerConfig(),
                clock=SystemClock(),
            )
            async with server.running(), Peer("the test", f"127.0.0.1:{server.port}") as peer:
                yield history, engine, link, peer


async def listed(peer: Peer, **asked) -> pb.ListDeadLettersResponse:
    request = pb.ListDeadLettersRequest(**asked)
    return await peer.unary(f"{SERVICE}/ListDeadLetters", request, pb.ListDeadLettersResponse, seconds=5)


async def retried(peer: Peer, **asked) -> tuple[int, int]:
    request = pb.RetryDeadLettersRequest(**asked)
    reply = await peer.unary(f"{SERVICE}/RetryDeadLetters", request, pb.RetryDeadLettersResponse, seconds=5)
    return reply.taken_count, reply.refused_count


async def deleted(peer: Peer, **asked) -> tuple[int, int]:
    request = pb.DeleteDeadLettersRequest(**asked)
    reply = await peer.unary(f"{SERVICE}/DeleteDeadLetters", request, pb.DeleteDeadLettersResponse, seconds=5)
    return reply.deleted_count, reply.sample_count


async def test_what_an_engine_refused_is_listed_and_taken_when_it_no_longer_does(tmp_path: Path):
    async with linked(tmp_path) as (history, engine, link, peer):
        reply = await listed(peer)
        (letter,) = reply.dead_letters
        assert (letter.consumer, letter.reason, letter.sample_count) == ("influxdb", "a field has another type", 4)
        assert (list(letter.servers), letter.first_position, letter.last_position) == (["bad"], 1, 4)
        assert link.dead_letters == reply.total_count == 1
        assert await retried(peer, consumer="influxdb") == (0, 1)
        assert (await listed(peer)).dead_letters[0].retry_count == 1
        await history.write(encode(frame(-1, {"bad": {"x": 7.0}})))  # written anew: refused, too
        await arrived(history)
        engine.refuses.clear()
        assert await retried(peer, ids=[letter.id]) == (1, 0)
        assert engine.held["bad", "x", NOW - SECOND] == 7.0
        assert engine.held["bad", "y", NOW - SECOND] == 2.0
        assert engine.held["bad", "x", NOW - 3 * SECOND] == 1.0
        row = history.ledger.row("influxdb", history.log)
        assert (row.dead_lettered_sample_count, row.waiting_sample_count) == (0, 0)
        assert row.delivered_sample_count == history.log.state.accepted
        assert (await listed(peer)).total_count == 0


async def test_letters_that_are_forgotten_stay_counted(tmp_path: Path):
    async with linked(tmp_path) as (history, _, _, peer):
        assert await deleted(peer, consumer="influxdb") == (1, 4)
        assert await deleted(peer, consumer="influxdb") == (0, 0)
        assert history.ledger.row("influxdb", history.log).dead_lettered_sample_count == 4
    async with opened(tmp_path) as history:
        assert history.ledger.letters.of() == []


async def test_an_engine_that_is_away_is_said_and_its_letters_stay(tmp_path: Path):
    async with linked(tmp_path) as (_, engine, link, peer):
        engine.away = True
        with pytest.raises(UnavailableError):
            await retried(peer, consumer="influxdb")
        assert not link.ready
        with pytest.raises(UnavailableError, match="influxdb does not answer"):
            await retried(peer, consumer="influxdb")
        assert (await listed(peer)).total_count == 1


async def test_an_engine_that_is_filled_anew_begins_with_no_letters(tmp_path: Path):
    async with linked(tmp_path) as (history, engine, link, peer):
        await history.seal()
        engine.epoch = ""
        engine.refuses.clear()
        await link.look()
        await arrived(history)
        assert (await listed(peer)).total_count == 0
        row = history.ledger.row("influxdb", history.log)
        assert (row.dead_lettered_sample_count, row.resynced_sample_count) == (0, 8)
        assert len(engine.held) == 8


async def test_letters_come_in_pages(tmp_path: Path):
    async with linked(tmp_path) as (history, _, _, peer):
        for at in range(4):
            refused(history.ledger, "registrar", refusal(at + 1, reason=str(at)))
        first = await listed(peer, page_size=2)
        assert [letter.id for letter in first.dead_letters] == ["1", "2"]
        history.ledger.letters.remove(history.ledger.letters.find("", ("2",))[0])
        second = await listed(peer, page_size=2, page_token=first.next_page_token)
        assert [letter.id for letter in second.dead_letters] == ["3", "4"]
        last = await listed(peer, page_size=2, page_token=second.next_page_token)
        assert ([letter.id for letter in last.dead_letters], last.next_page_token) == (["5"], "")
        assert [letter.id for letter in (await listed(peer, consumer="registrar")).dead_letters] == ["3", "4", "5"]
        with pytest.raises(InvalidArgumentError, match="page token"):
            await listed(peer, consumer="registrar", page_token=first.next_page_token)


@pytest.mark.parametrize("call", [retried, deleted])
async def test_what_cannot_be_meant_is_refused(tmp_path: Path, call: Callable):
    async with linked(tmp_path) as (history, _, _, peer):
        with pytest.raises(InvalidArgumentError) as caught:
            await call(peer)
        assert caught.value.field == "consumer"
        with pytest.raises(InvalidArgumentError) as caught:
            await call(peer, consumer="Not a name")
        assert caught.value.field == "consumer"
        with pytest.raises(InvalidArgumentError) as caught:
            await call(peer, ids=["1"] * 1001)
        assert caught.value.field == "ids"
        for ids in ([""], ["x"], ["9" * 5000], ["-1"]):
            with pytest.raises(InvalidArgumentError) as caught:
                await call(peer, ids=ids)
            assert caught.value.field == "ids"
        for asked in ({"ids": ["99"]}, {"consumer": "registrar", "ids": ["1"]}):
            with pytest.raises(NotFoundError):
                await call(peer, **asked)
        refused(history.ledger, "gone", refusal())
        assert await call(peer, consumer="gone") == ((0, 1) if call is retried else (1, 3))


async def test_what_history_no_longer_has_is_not_said_to_be_taken(tmp_path: Path):
    async with linked(tmp_path) as (history, engine, _, peer):
        refused(history.ledger, "influxdb", refusal(90, servers=()))
        old = replace(refusal(91, reason="old"), start=NOW - 400 * DAY, end=NOW - 400 * DAY + 1)
        refused(history.ledger, "influxdb", old)
        engine.refuses.clear()
        assert await retried(peer, consumer="influxdb") == (1, 2)
        reasons = [letter.reason for letter in (await listed(peer)).dead_letters]
        assert reasons[0] == "nobody could see which samples these are"
        assert reasons[1].startswith("history no longer has all of it: ")


async def test_a_retry_that_is_interrupted_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine_link, "RETRY_NANOS", SECOND)
    async with linked(tmp_path) as (history, engine, link, peer):
        for at in range(1, 7):
            await history.write(encode(frame(at, {"bad": {"x": float(at)}})))
        await arrived(history)
        (letter,) = (await listed(peer)).dead_letters
        engine.refuses.clear()
        write, times, room = engine.write, [], 4

        async def interrupted(frames: Sequence[Frame], info_of: object) -> Sequence[Refused]:
            if len(times) == room:
                raise UnavailableError("it is away")
            times.extend(int(each.times[0] - NOW) // SECOND for each in frames)
            return await write(frames, info_of)

        monkeypatch.setattr(engine, "write", interrupted)
        with pytest.raises(UnavailableError):
            await retried(peer, consumer="influxdb")
        assert times == [-3, -1, 1, 2]
        (left,) = (await listed(peer)).dead_letters
        assert (left.id, left.sample_count) == (letter.id, letter.sample_count)
        assert left.start_time.ToNanoseconds() == NOW + 3 * SECOND
        await history.ledger.save(history.log)
        assert Ledger(PosixDisk(tmp_path / "log"), SystemClock()).letters.of()[0].refusal.start == NOW + 3 * SECOND
        room = 99
        await link.look()
        assert await retried(peer, consumer="influxdb") == (1, 0)
        assert times == [-3, -1, 1, 2, 3, 4, 5, 6]
        assert history.ledger.books["influxdb"].dead_lettered == 0
        assert history.ledger.unbalanced() == []


def test_a_letter_that_grows_while_it_is_tried_keeps_all_of_its_time():
    letters = DeadLetters(FaultyDisk())
    letters.add("influxdb", refusal(5, 9), now=1)
    (before,) = letters.of()
    left = letters.shorten(before, 7 * SECOND)
    assert letters.of() == [left]
    assert (left.refusal.start, left.refusal.sample_count) == (7 * SECOND, 3)
    letters.add("influxdb", refusal(6), now=2)
    (grown,) = letters.of()
    letters.shorten(left, 8 * SECOND)
    assert letters.of() == [grown]
    assert grown.refusal.start == 6 * SECOND


# ── beginning again ────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.asynccontextmanager
async def delivering(folder: Path) -> AsyncIterator[tuple[History, PickyEngine, EngineLink]]:
    """A shard with three frames in a block and two in the head, delivered to an engine that is away for the next."""
    async with opened(folder) as history:
        engine = PickyEngine()
        engine.refuses.clear()
        link = EngineLink(engine, history, history.clock, folder / "engine.json")
        await link.look()
        await written(history, ["a", "b", "c"])
        await history.seal()
        async with running(history, link):

            async def is_delivered() -> bool:
                return link._through == history.log.state.head_position

            await history.write(encode(frame(-7, {"d": {"x": 1.0}})))
            await history.write(encode(frame(-6, {"e": {"x": 1.0}})))
            await wait_until(is_delivered)
            engine.away = True
            await link.look()
            await history.write(encode(frame(-5, {"f": {"x": 1.0}})))

            async def is_tried() -> bool:
                row = history.ledger.row("influxdb", history.log)
                return row.state == status_pb2.STORAGE_STATE_DOWN

            await wait_until(is_tried)
            yield history, engine, link
            engine.away = False
            history.clock.seconds += 2  # the breakers' time is over
            await link.look()
            await wait_until(is_delivered)
            assert {server for server, _, _ in engine.held} == set("abcdef")
            await arrived(history)
            assert history.ledger.row("influxdb", history.log).waiting_sample_count == 0


async def test_an_engine_that_comes_back_empty_gets_also_what_is_in_no_block_yet(tmp_path: Path):
    async with delivering(tmp_path) as (_, engine, _):
        engine.held.clear()
        engine.epoch = ""


async def test_an_engine_that_was_away_longer_than_the_log_waits_is_filled_from_the_blocks(tmp_path: Path):
    async with delivering(tmp_path) as (history, engine, link):
        engine.held.clear()
        link.cut_loose()
        assert not link.ready
        again = EngineLink(PickyEngine(), history, history.clock, tmp_path / "engine.json")
        assert not again._filled  # a crash does not make it forget


async def test_an_engine_that_may_have_lost_what_it_took_gets_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    later = replace(PickyEngine.capabilities, durable_after=timedelta(seconds=60))
    monkeypatch.setattr(PickyEngine, "capabilities", later)
    async with opened(tmp_path) as history:
        engine = PickyEngine()
        engine.refuses.clear()
        link = EngineLink(engine, history, history.clock, tmp_path / "engine.json")
        await link.look()
        history.clock.seconds += 100  # what it was filled with is for good
        await link.look()
        await written(history, ["a", "b", "c"])
        async with running(history, link):

            async def is_delivered() -> bool:
                return link._through == history.log.state.head_position

            await wait_until(is_delivered)
            engine.held.clear()
            engine.started, engine.away = "2", True
            await link.look()
            await written(history, ["d"])
            engine.away = False
            history.clock.seconds += 2  # the breakers' time is over
            await link.look()
            await wait_until(is_delivered)
            assert {server for server, _, _ in engine.held} == set("abcd")


async def test_what_comes_while_books_are_stored_is_for_the_next_time(tmp_path: Path):
    disk = PosixDisk(tmp_path / "log")
    async with opened(tmp_path / "history") as history:
        ledger = Ledger(disk, StillClock())
        refused(ledger, "influxdb", refusal(1))
        store = ledger.letters.save

        def save(raw: bytes) -> None:
            store(raw)
            refused(ledger, "influxdb", refusal(2, reason="other"))
            ledger.open_books("influxdb").position = 2

        ledger.letters.save = save
        await ledger.save(history.log)
        stored = Ledger(disk, StillClock())
        assert (len(stored.letters), stored.books["influxdb"].position) == (1, 0)
        assert stored.books["influxdb"].dead_lettered == 3
        ledger.letters.save = store
        await ledger.save(history.log)
        stored = Ledger(disk, StillClock())
        assert (len(stored.letters), stored.books["influxdb"].position) == (2, 2)
