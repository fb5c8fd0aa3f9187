"""A server that exports one chunk and then nothing, for ever: what an export looks like in the middle."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
from grpc_health.v1 import health, health_pb2_grpc

from openmanager.api.timeseries.v1 import timeseries_pb2 as pb

SERVICE = "openmanager.api.timeseries.v1.TimeseriesService"


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """Serve it, and yield where."""
    over = threading.Event()

    def export(request: pb.ExportSeriesRequest, context: grpc.ServicerContext) -> Iterator[pb.ExportSeriesResponse]:
        yield pb.ExportSeriesResponse(header=pb.ExportHeader(series_count=2))
        out = pa.BufferOutputStream()
        row = {"metric": ["m"], "server": ["a"], "time": pa.array([1], pa.timestamp("ms", "UTC")), "value": [1.0]}
        pq.write_table(pa.table(row), out)
        chunk = pb.ExportChunk(parquet=out.getvalue().to_pybytes(), row_count=1, resume_token="t", done_series_count=1)
        yield pb.ExportSeriesResponse(chunk=chunk)
        over.wait(30)

    handler = grpc.unary_stream_rpc_method_handler(
        export, pb.ExportSeriesRequest.FromString, pb.ExportSeriesResponse.SerializeToString
    )
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"ExportSeries": handler}),))
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        over.set()
        server.stop(0).wait()
