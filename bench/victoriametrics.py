"""Rows about VictoriaMetrics: what it costs to deliver samples to it as line protocol, and by remote write instead."""

from __future__ import annotations

import http.client
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from openmanager_timeseries.line_protocol import LineEncoder, split, tags_of

from bench.data import INTERVAL, standard_series
from bench.echo import free_port
from bench.pair import Row, at_most, pairs
from openmanager.frame import NANOS_PER_MILLI, Frame, ServerInfo, length_delimited
from openmanager.metric import parse_key

SERVERS, METRICS, TICKS = 100, 511, 12
BATCH_BYTES = 1 << 20
