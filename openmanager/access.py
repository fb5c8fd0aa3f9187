"""Who may do what: identities, what their roles allow, and over which servers.

Somebody has *grants*, each a role over all servers or over those that a filter chooses. A role gives *permissions*; what
a method needs stands in `openmanager.policy`, and nothing is allowed that neither says. While a call is served,
`narrowed` and `reaches` keep it to the servers that its permission is over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from typing import Any

from openmanager import filter as server_filter
from openmanager.errors import NotFoundError, PermissionDeniedError, invalid

# What a grant may be over; the state of a server and other things that change by themselves decide nothing.
SCOPE_FIELDS = dict.fromkeys(("id", "hostname", "environment", "role", "location", "labels.*"), server_filter.TEXT)
MAX_GRANTS = 20
MAX_SCOPE_LENGTH = 512
MAX_SCOPE_TERMS = 8


class Permission(StrEnum):
    """What methods need."""

    NOTHING = "nothing"  # no credentials: health, and signing in
    SELF = "self"  # some credentials: what concerns the caller alone
    READ = "read"  # state, history, inventory, settings, status
    WRITE = "write"  # samples
    RECORD = "record"  # interactions with an AI, and ratings of them
    LEARN = "learn"  # reading interactions
    OPERATE = "operate"  # the inventory, simulations, faults, imports, dead letters, silences
    CONFIGURE = "configure"  # retention, thresholds, rules of alerts, deletion of history
    AUDIT = "audit"  # the audit log, and who has which role
    MANAGE = "manage"  # users, keys, erasure
    MESH = "mesh"  # what the servers of the mesh ask each other


class Role(StrEnum):
    """What somebody is."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"
    AUDITOR = "auditor"
    SERVICE = "service"
    MESH = "mesh"  # a server of the mesh; nobody can be given it


_P = Permission
PERMISSIONS: Mapping[Role, frozenset[Permission]] = {
    Role.VIEWER: frozenset({_P.READ}),
    Role.OPERATOR: frozenset({_P.READ, _P.WRITE, _P.RECORD, _P.LEARN, _P.OPERATE}),
    Role.ADMIN: frozenset(Permission) - {_P.MESH},
    Role.AUDITOR: frozenset({_P.READ, _P.AUDIT}),
    Role.SERVICE: frozenset({_P.READ, _P.WRITE, _P.RECORD}),
    Role.MESH: frozenset(Permission),
}
DESCRIPTIONS: Mapping[Role, str] = {
    Role.VIEWER: "sees the state, the history and the inventory of servers",
    Role.OPERATOR: "runs the fleet: inventory, simulations, faults, imports, dead letters, silences; writes samples",
    Role.ADMIN: "does everything, and manages users and keys",
    Role.AUDITOR: "sees what a viewer sees, who may do what, and the audit log",
    Role.SERVICE: "is a program that writes and reads samples and records interactions",
}
# Those that somebody can be given.
ROLES = tuple(DESCRIPTIONS)


@dataclass(frozen=True, slots=True)
class Grant:
    """A role over all servers, or over those of a filter."""

    role: Role
    server_filter: str = ""


def known_grants(pairs: Iterable[tuple[str, str]]) -> tuple[Grant, ...]:
    """Return grants by role and filter; one of a role that this version does not know allows nothing and is left out."""
    roles = set(Role)
    return tuple(Grant(Role(role), text) for role, text in pairs if role in roles)


@dataclass(frozen=True)
class Identity:
    """Who is calling: the subject is `users/<id>`, `keys/<id>`, `services/<name>` or `local`.

    `end` is when what they came with ends, in seconds since the epoch; `session` the id of a user's session.
    """

    subject: str
    grants: tuple[Grant, ...]
    end: float = float("inf")
    session: str = ""
    _scopes: dict[Permission, str | None] = field(default_factory=dict, compare=False, repr=False)

    def scope(self, permission: Permission) -> str | None:
        """Return the filter of the servers that a permission is over, empty for all; None without the permission."""
        if permission not in self._scopes:
            self._scopes[permission] = _scope(self.grants, permission)
        return self._scopes[permission]

    @property
    def is_of_mesh(self) -> bool:
        """Whether it is a server of the mesh."""
        return self.subject.startswith(_SERVERS)


def _scope(grants: tuple[Grant, ...], permission: Permission) -> str | None:
    if permission in {Permission.NOTHING, Permission.SELF}:
        return ""
    filters = [grant.server_filter for grant in grants if permission in PERMISSIONS[grant.role]]
    if not filters:
        return None
    return "" if "" in filters else " OR ".join(f"({text})" for text in dict.fromkeys(filters))


_SERVERS = "services/"
# On one's own machine nobody needs credentials, unless they are asked for; the servers there ask each other so too.
LOCAL = Identity("local", (Grant(Role.ADMIN), Grant(Role.MESH)))
NOBODY = Identity("nobody", ())


def server(name: str) -> Identity:
    """Return the identity of a server of the mesh."""
    return Identity(f"{_SERVERS}{name}", (Grant(Role.MESH),))


def check_grants(grants: tuple[Grant, ...], name: str) -> None:
    """Raise InvalidArgumentError, naming the field, for what nobody can be given."""
    if len(grants) > MAX_GRANTS:
        raise invalid(name, f"has more than {MAX_GRANTS} entries")
    for grant in grants:
        text = grant.server_filter
        if len(text) > MAX_SCOPE_LENGTH:
            raise invalid(f"{name}.server_filter", f"is longer than {MAX_SCOPE_LENGTH} characters")
        node = server_filter.parse(text, f"{name}.server_filter")
        server_filter.check_fields(node, SCOPE_FIELDS, f"{name}.server_filter")
        if _terms(node) > MAX_SCOPE_TERMS:
            raise invalid(f"{name}.server_filter", f"has more than {MAX_SCOPE_TERMS} comparisons")
    for permission in Permission:
        # All of them together are a filter too.
        server_filter.parse(_scope(grants, permission) or "", f"{name}.server_filter")


def check_role(text: str, name: str) -> Role:
    """Return a role that somebody can be given; InvalidArgumentError, naming the field, when there is none such."""
    if text not in ROLES:
        raise invalid(name, f"must be one of {', '.join(ROLES)}")
    return Role(text)


def _terms(node: server_filter.Node | None) -> int:
    match node:
        case server_filter.And(parts=parts) | server_filter.Or(parts=parts):
            return sum(map(_terms, parts))
        case server_filter.Not(part=part):
            return _terms(part)
        case _:
            return int(node is not None)


# ── while a call is served ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is calling, the filter of the servers that this call is kept to, empty for all, and their address.

    `noted`: what the call reads has been written down, for all calls that are made of it.
    """

    identity: Identity
    scope: str = ""
    source: str = ""
    noted: bool = False


_caller: ContextVar[Caller | None] = ContextVar("caller", default=None)


def serve(caller: Caller) -> None:
    """Note who is calling, in the task that serves the call."""
    _caller.set(caller)


def caller() -> Caller | None:
    """Return who is calling; None in work that nobody has called for."""
    return _caller.get()


def noted() -> None:
    """Say that the call that is served has been written down, to those who are asked for it."""
    if (found := _caller.get()) is not None:
        _caller.set(replace(found, noted=True))


def scope() -> str:
    """Return the filter of the servers that this call is kept to; empty for all."""
    found = _caller.get()
    return found.scope if found is not None else ""


def narrowed(text: str, name: str = "filter") -> str:
    """Return a request's filter, kept to the servers of this call; InvalidArgumentError for one that is none."""
    own = scope()
    if not own:
        return text
    if server_filter.parse(text, name) is None:  # on its own, so that it cannot close our parenthesis
        return own
    return f"({text}) AND ({own})"


@lru_cache(maxsize=1024)
def _node(text: str) -> server_filter.Node | None:
    return server_filter.parse(text)


def reaches(lookup: Callable[[str], Any]) -> bool:
    """Say whether a server belongs to this call, `lookup` giving its fields."""
    return server_filter.matches(_node(scope()), lookup)


def fields_of(server: Any) -> Callable[[str], str]:
    """Return the lookup of the fields of a server: anything that has those of SCOPE_FIELDS as attributes."""

    def value(name: str) -> str:
        if name.startswith("labels."):
            return str(server.labels.get(name.removeprefix("labels."), ""))
        return str(getattr(server, name))

    return value


def check_reaches(lookup: Callable[[str], Any], server_id: str) -> None:
    """Raise NotFoundError for a server that does not belong to this call: whether there is one is not told."""
    if not reaches(lookup):
        raise NotFoundError("there is no such server", resource=f"server/{server_id}")


def check_may_change(lookup: Callable[[str], Any], name: str) -> None:
    """Raise PermissionDeniedError for a server that is not the caller's to change."""
    if not reaches(lookup):
        raise PermissionDeniedError("a server is beyond what you may change", field=name)
