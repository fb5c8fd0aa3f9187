"""Tables of Arrow, with the columns of an export, as rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from openmanager.grid import Rows

KEY = ("metric", "server", "time")


def of_table(table: pa.Table) -> Rows:
    """Return the rows of a table with `metric`, `server`, `time`, and numbers in its other columns; null is NaN."""
    import numpy as np
    import pyarrow as pa

    from openmanager.grid import Rows

    servers, server_codes = names_of(table.column("server"))
    metrics, metric_codes = names_of(table.column("metric"))
    return Rows(
        servers=servers,
        server_codes=server_codes,
        metrics=metrics,
        metric_codes=metric_codes,
        times=table.column("time").cast(pa.timestamp("ns", "UTC")).cast(pa.int64()).to_numpy(),
        columns={
            name: table.column(name).cast(pa.float64()).to_numpy().astype(np.float64, copy=False)
            for name in table.column_names
            if name not in KEY
        },
    )


def names_of(column: Any) -> tuple[list[str], NDArray[Any]]:
    """Return the distinct names of a column, and of each row the index of its own: int64[K]."""
    import numpy as np
    import pyarrow as pa

    whole = column.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):
        whole = whole.chunk(0)
    coded = whole if isinstance(whole, pa.DictionaryArray) else whole.dictionary_encode()
    return coded.dictionary.cast(pa.string()).to_pylist(), coded.indices.to_numpy().astype(np.int64)
