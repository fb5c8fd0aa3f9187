"""The edge of the log: its books, and what its readers could not take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openmanager import page
from openmanager.api.timeseries.v1 import timeseries_pb2 as pb
from openmanager.errors import (
    CancelledCallError,
    DeadlineExceededError,
    OpenManagerError,
    Reason,
    ResourceExhaustedError,
    UnavailableError,
    invalid,
    missing,
)
from openmanager.runtime.edge import unbounded
from openmanager.watch import compacted
from openmanager_timeseries.dead_letter import DeadLetter
from openmanager_timeseries.history import History
from openmanager_timeseries.ledger import OWN_CONSUMERS, check_consumer
from openmanager_timeseries.port import Consumer

MAX_LETTER_IDS = 1000
MAX_LETTER_SERVERS = 100
MAX_DIGITS = 18  # of a number of 64 bits


class LogService:
    """openmanager.api.timeseries.v1.LogService."""

    def __init__(self, history: History, consumers: Mapping[str, Consumer]) -> None:
        self._history = history
        # Those in this process.
        self._consumers = consumers

    async def GetLedger(self, request: pb.GetLedgerRequest, context: Any) -> pb.GetLedgerResponse:  # noqa: ARG002, N802
        """Return the books."""
        return pb.GetLedgerResponse(ledger=self._history.ledger.message(self._history.log))

    async def ConfirmPosition(  # noqa: N802
        self,
        request: pb.ConfirmPositionRequest,
        context: Any,  # noqa: ARG002
    ) -> pb.ConfirmPositionResponse:
        """Store a consumer's position."""
        name = check_consumer(request.consumer)
        if name in OWN_CONSUMERS:
            raise invalid(
                "consumer", f"must not be one of {', '.join(sorted(OWN_CONSUMERS))}: these are the service's own"
            )
        if request.resume_token:
            raise compacted()  # of a mesh with another number of shards
        if request.position < 0:
            raise invalid("position", "must not be negative")
        await self._history.ledger.confirm(self._history.log, name, request.position, resynced=request.resynced)
        return pb.ConfirmPositionResponse(consumer=self._history.ledger.row(name, self._history.log))

    async def ListDeadLetters(  # noqa: N802
        self,
        request: pb.ListDeadLettersRequest,
        context: Any,  # noqa: ARG002
    ) -> pb.ListDeadLettersResponse:
        """List what consumers could not take."""
        consumer = check_consumer(request.consumer) if request.consumer else ""
        size, query = page.page_size(request.page_size), (consumer,)
        after = page.decode_token(query, request.page_token)
        letters = self._history.ledger.letters.of(consumer)
        # A letter that is deleted between two pages does not end the list: ids are numbers that ascend.
        rest = [each for each in letters if after is None or int(each.id) > _number(after[0])]
        reply = pb.ListDeadLettersResponse(
            total_count=len(letters),
            dead_letters=map(letter_message, rest[:size]),
            forgotten_count=self._history.ledger.letters.forgotten,
        )
        if len(rest) > size:
            reply.next_page_token = page.encode_token(query, [rest[size - 1].id])
        return reply

    @unbounded
    async def RetryDeadLetters(  # noqa: N802
        self,
        request: pb.RetryDeadLettersRequest,
        context: Any,  # noqa: ARG002
    ) -> pb.RetryDeadLettersResponse:
        """Give letters to their consumers again."""
        ledger, reply = self._history.ledger, pb.RetryDeadLettersResponse()
        for letter in self._letters(request):
            if reason := await self._refused_again(letter):
                ledger.letters.refused_again(letter, reason, self._history.clock.now_nanos())
                reply.refused_count += 1
            else:
                ledger.taken_after_all(letter)
                reply.taken_count += 1
            await self._store()
        return reply

    async def _refused_again(self, letter: DeadLetter) -> str:
        """Give a letter to its consumer again; return why it is refused again, nothing when it is not."""
        consumer = self._consumers.get(letter.consumer)
        if consumer is None:
            return f"there is no consumer {letter.consumer} any more"
        letters, left = self._history.ledger.letters, letter

        def done(until: int) -> None:
            nonlocal left
            left = letters.shorten(left, until)

        try:
            return await consumer.take_again(letter.refusal, done)
        except TimeoutError as err:
            raise UnavailableError(f"{letter.consumer} does not answer", reason=Reason.STORE_UNAVAILABLE) from err
        except (UnavailableError, DeadlineExceededError, CancelledCallError, ResourceExhaustedError):
            raise
        except OpenManagerError as err:
            return err.message

    async def DeleteDeadLetters(  # noqa: N802
        self,
        request: pb.DeleteDeadLettersRequest,
        context: Any,  # noqa: ARG002
    ) -> pb.DeleteDeadLettersResponse:
        """Forget letters."""
        gone = [each for each in self._letters(request) if self._history.ledger.letters.remove(each)]
        await self._store()
        return pb.DeleteDeadLettersResponse(
            deleted_count=len(gone), sample_count=sum(each.refusal.sample_count for each in gone)
        )

    def _letters(self, request: pb.RetryDeadLettersRequest | pb.DeleteDeadLettersRequest) -> Sequence[DeadLetter]:
        """Return the letters that are chosen: nobody deletes all of them by leaving a field out."""
        if not (request.consumer or request.ids):
            raise missing("consumer")
        if len(request.ids) > MAX_LETTER_IDS:
            raise invalid("ids", f"has more than {MAX_LETTER_IDS} entries")
        if not all(map(_number, request.ids)):
            raise invalid("ids", "holds what is no id of a dead letter")
        consumer = check_consumer(request.consumer) if request.consumer else ""
        return self._history.ledger.letters.find(consumer, request.ids)

    async def _store(self) -> None:
        try:
            await self._history.ledger.save(self._history.log)
        except OSError as err:
            raise UnavailableError("the dead letters could not be stored", reason=Reason.LOG_UNFIT) from err


def letter_message(letter: DeadLetter) -> pb.DeadLetter:
    """Return a letter as clients see it."""
    refusal = letter.refusal
    made = pb.DeadLetter(
        id=letter.id,
        consumer=letter.consumer,
        reason=refusal.reason,
        sample_count=refusal.sample_count,
        servers=refusal.servers[:MAX_LETTER_SERVERS],
        first_position=refusal.first,
        last_position=refusal.last,
        retry_count=letter.retries,
    )
    for name, time in (
        ("start_time", refusal.start),
        ("end_time", refusal.end),
        ("create_time", letter.created),
        ("update_time", letter.updated),
    ):
        getattr(made, name).FromNanoseconds(time)
    return made


def _number(text: str) -> int:
    """Return the number that an id is, 0 for a text that is none."""
    return int(text) if text.isdecimal() and len(text) <= MAX_DIGITS else 0
