"""Frames and those who may touch some servers only: what they write is refused beyond these, what they watch is cut out.

What is known of a server decides, not what a frame tells of it, unless nothing is known yet; and nobody may tell of a
server what would put it beyond their own reach. Whoever reaches all servers passes here at the cost of one look.
"""

from __future__ import annotations

import numpy as np

from openmanager import access
from openmanager.api.frame.v1 import frame_pb2
from openmanager.frame import FrameReader, decode_trusted, encode, of_servers
from openmanager_timeseries.catalog import Catalog
from openmanager_timeseries.record import Payload


def check_writable(catalog: Catalog, payload: Payload) -> None:
    """Raise PermissionDeniedError when a frame has samples of a server, or tells of one, beyond the caller's reach."""
    if not access.scope():
        return
    frame, _ = FrameReader().read(payload)
    told = {info.id.lower(): info for info in frame.server_infos}
    for server in {*frame.servers, *told}:
        known, info = catalog.infos.get(server), told.get(server)
        for each in filter(None, (known, info)) if known or info else (catalog.info_of(server),):
            access.check_may_change(access.fields_of(each), "frame.servers")


def readable(catalog: Catalog, payload: Payload) -> Payload:
    """Return the part of a frame of the log that is of servers within the caller's reach; empty when none is."""
    if not access.scope():
        return payload
    frame = decode_trusted(frame_pb2.Frame.FromString(bytes(payload)))
    reached = [access.reaches(access.fields_of(catalog.info_of(server))) for server in frame.servers]
    if all(reached):
        return payload
    if not any(reached):
        return b""
    return encode(of_servers(frame, np.asarray(reached)))
