"""A page of ListSeries: found by the name it begins after, however many series come before it."""

from __future__ import annotations

import bisect

from openmanager import page
from openmanager.api.provenance.v1 import provenance_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2 as pb
from openmanager.frame import metric_message
from openmanager_timeseries.catalog import NEVER, Catalog

# Servers, server_filter and metrics of a selector.
Query = tuple[tuple[str, ...], str, tuple[str, ...]]


def series_page(
    catalog: Catalog, query: Query, size: int, token: str, provenance: provenance_pb2.Provenance
) -> pb.ListSeriesResponse:
    """Return the page of a query that a token continues with; `size` as the request has it.

    Raises InvalidArgumentError for a negative size, a malformed selector, and a token that is damaged or of another
    query. What lives throughout is listed exactly once, whatever comes and goes between the pages.
    """
    size = page.page_size(size)
    after = page.decode_token(query, token, parts=2)
    ids = catalog.ordered(*query)

    def name(at: int) -> tuple[str, str]:
        servers, metrics = catalog.names(ids[at : at + 1])
        return servers[0], metrics[0]

    first = bisect.bisect_right(range(len(ids)), (after[0], after[1]), key=name) if after is not None else 0
    some = ids[first : first + size]
    response = pb.ListSeriesResponse(total_count=len(ids), provenance=provenance)
    about = {metric: metric_message(catalog.metric_info(metric)) for metric in set(catalog.names(some)[1])}
    times, _ = catalog.last(some)
    for server, metric, time in zip(*catalog.names(some), times.tolist(), strict=True):
        row = response.series.add(server=server, metric=metric, metric_info=about[metric])
        if time != NEVER:
            row.last_time.FromNanoseconds(time)
    if first + size < len(ids):
        response.next_page_token = page.encode_token(query, list(name(first + size - 1)))
    return response
