"""Passwords: Argon2id in threads, few at once, because each takes memory and time on purpose."""

from __future__ import annotations

import asyncio

import argon2

from openmanager.errors import Reason, ResourceExhaustedError, invalid

MIN_LENGTH, MAX_LENGTH = 12, 128
MIN_DIFFERENT = 5
# The second set of OWASP's recommendations (2025) with more memory: 47 MiB, one pass, about 40 ms.
_HASHER = argon2.PasswordHasher(time_cost=1, memory_cost=47 * 1024, parallelism=1)
_AT_ONCE = 2
_MAX_WAITING = 20
_NOBODYS = "$argon2id$v=19$m=48128,t=1,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"


class Passwords:
    """Hashes and verifies."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._waiting = 0

    async def hash(self, password: str) -> str:
        """Return the hash of a password, with its salt and parameters."""
        return str(await self._run(_HASHER.hash, password))

    async def verify(self, known: str | None, password: str) -> bool:
        """Say whether it is the password, in the same time for somebody who has none."""
        return bool(await self._run(_verify, known, password))

    async def _run(self, work: object, *arguments: object) -> object:
        if self._waiting >= _MAX_WAITING:
            raise ResourceExhaustedError("too many passwords wait to be checked", reason=Reason.OVERLOADED)
        self._waiting += 1
        try:
            async with self._slots:
                return await asyncio.to_thread(work, *arguments)  # type: ignore[arg-type]
        finally:
            self._waiting -= 1


def _verify(known: str | None, password: str) -> bool:
    try:
        return _HASHER.verify(known or _NOBODYS, password) and known is not None
    except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
        return False


def is_outdated(known: str) -> bool:
    """Say whether a hash was made with other parameters than ours."""
    return _HASHER.check_needs_rehash(known)


def check_password(password: str, user_name: str, field: str) -> None:
    """Raise InvalidArgumentError, naming the field, for a password that is too easy."""
    if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
        raise invalid(field, f"must have {MIN_LENGTH}–{MAX_LENGTH} characters")
    if len(set(password)) < MIN_DIFFERENT:
        raise invalid(field, f"must have at least {MIN_DIFFERENT} different characters")
    if user_name and user_name.lower() in password.lower():
        raise invalid(field, "must not hold the user's name")
