"""The catalogue of series: against a dictionary that is asked the slow way, page by page, and up to its limit."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openmanager_timeseries.catalog import NEVER, Catalog, Layout, merge_info
from openmanager_timeseries.series_page import series_page

from openmanager import filter as server_filter
from openmanager import page
from openmanager.api.frame.v1 import frame_pb2
from openmanager.api.provenance.v1 import provenance_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2 as pb
from openmanager.errors import InvalidArgumentError
from openmanager.frame import Frame, MetricInfo, ServerInfo
from openmanager.metric import Pattern

SERVERS = ["a", "a-1", "b", "b1", "ü", "z"]
METRICS = ["cpu", "cpu{core=0}", "cpu{core=1}", "cpu.x", "disk{dev=a,op=r}", "disk{dev=a,op=w}", "mem"]
FILTERS = [
    "",
    "role = web",
    "role != web",
    'id : "b"',
    "NOT role = db AND labels.rack : r",
    'labels.rack != r1 OR hostname = ""',
    "(environment = prod OR id = a) AND NOT labels.rack = r2",
]
PATTERNS = [(), ("cpu",), ("cpu{core=*}", "mem"), ("*{op=w}",), ("d*",), ("cpu.x", "nothing"), ("cpu{core=0}",)]
Series = tuple[str, str]


def frame(time: int, servers: list[str], metrics: list[str], values: np.ndarray, **more) -> Frame:
    return Frame(
        times=np.array([time]),
        servers=tuple(servers),
        metrics=tuple(metrics),
        values=values.reshape(1, *values.shape),
        **more,
    )


def write(catalog: Catalog, given_: Frame) -> Layout:
    """Take a frame as the service does: laid out, admitted, observed; what finds no room is left out."""
    layout = catalog.layout(given_.servers, given_.metrics)
    catalog.admit(layout, ~np.all(np.isnan(given_.values), axis=0))
    catalog.observe(layout, given_)
    return layout


def fill(catalog: Catalog, series: list[Series], time: int = 1) -> None:
    for server, metric in series:
        write(catalog, frame(time, [server], [metric], np.ones((1, 1))))


def listed(catalog: Catalog, *query) -> list[Series]:
    return list(zip(*catalog.names(catalog.select(*(query or ((), "", ()))).ids), strict=True))


def ids_of(catalog: Catalog, series: list[Series]) -> np.ndarray:
    servers, metrics = [s for s, _ in series], [m for _, m in series]
    codes = np.arange(len(series))
    return catalog.find((servers, codes), (metrics, codes))


@dataclass
class Model:
    """What the catalogue should say, from dictionaries."""

    limit: int
    last: dict[Series, tuple[int, float]] = field(default_factory=dict)
    infos: dict[str, ServerInfo] = field(default_factory=dict)

    def put(self, series: Series, time: int, value: float) -> None:
        known = self.last.get(series)
        if known is None and len(self.last) >= self.limit:
            return
        if known is None or known[0] <= time:
            self.last[series] = (time, value)

    def select(self, servers: tuple[str, ...], text: str, patterns: tuple[str, ...]) -> list[Series]:
        matchers = [Pattern.parse(pattern).matcher() for pattern in patterns]
        return sorted(
            (server, metric)
            for server, metric in self.last
            if (not servers or server in {name.lower() for name in servers})
            and server_filter.matches(server_filter.parse(text), self._lookup(server))
            and (not matchers or any(match(metric) for match in matchers))
        )

    def _lookup(self, server: str):
        info = self.infos.get(server) or ServerInfo(id=server)

        def value(name: str) -> str | None:
            return info.labels.get(name[7:]) if name.startswith("labels.") else str(getattr(info, name))

        return value


infos = st.builds(
    ServerInfo,
    id=st.sampled_from([*SERVERS, "unseen"]),
    role=st.sampled_from(["", "web", "db"]),
    environment=st.sampled_from(["", "prod"]),
    hostname=st.sampled_from(["", "a", "h"]),
    labels=st.dictionaries(st.just("rack"), st.sampled_from(["r1", "r2", ""]), max_size=1),
)
some_servers = st.lists(st.sampled_from(SERVERS), min_size=1, max_size=4, unique=True)
some_metrics = st.lists(st.sampled_from(METRICS), min_size=1, max_size=4, unique=True)
times = st.integers(1, 9)
steps = st.one_of(
    st.tuples(
        st.just("write"),
        times,
        some_servers,
        some_metrics,
        st.lists(st.booleans(), min_size=16, max_size=16),
        st.lists(infos, max_size=2),
    ),
    st.tuples(st.just("restore"), times, some_servers, some_metrics),
    st.tuples(st.just("forget"), some_servers, some_metrics),
    st.tuples(
        st.just("ask"),
        st.lists(st.sampled_from([*SERVERS, "A", "nobody"]), max_size=2).map(tuple),
        st.sampled_from(FILTERS),
        st.sampled_from(PATTERNS),
    ),
)


def check(catalog: Catalog, model: Model, query) -> None:
    selection = catalog.select(*query)
    expected = model.select(*query)
    assert expected == list(zip(*catalog.names(selection.ids), strict=True))
    assert len(model.last) == catalog.alive
    assert [catalog.servers[at] for at in catalog.server_of(selection.ids)] == [server for server, _ in expected]
    assert [catalog.metrics[at] for at in catalog.metric_of(selection.ids)] == [metric for _, metric in expected]
    found = [*zip(*(column.tolist() for column in catalog.last(selection.ids)), strict=True)]
    assert [model.last[series] for series in expected] == found
    assert ids_of(catalog, expected).tolist() == selection.ids.tolist()
    rows = np.full(catalog.count, -1)
    rows[selection.ids] = np.arange(len(expected))
    assert rows.tolist() == selection.rows.tolist()
    assert selection.servers[catalog.server_of(selection.ids)].all()
    assert selection.metrics[catalog.metric_of(selection.ids)].all()


def take_frame(catalog: Catalog, model: Model, time: int, servers, metrics, present, told) -> None:
    shape = (len(servers), len(metrics))
    values = np.where(np.array(present[: shape[0] * shape[1]]).reshape(shape), time / 2, np.nan)
    write(catalog, frame(time, servers, metrics, values, server_infos=tuple(told)))
    for row, column in np.argwhere(~np.isnan(values)).tolist():
        model.put((servers[row], metrics[column]), time, time / 2)
    for info in told:
        model.infos[info.id] = merge_info(model.infos.get(info.id), info)


def restore(catalog: Catalog, model: Model, time: int, servers, metrics) -> None:
    series = [(server, metric) for server in servers for metric in metrics]
    names = [server for server, _ in series], [metric for _, metric in series]
    catalog.restore(*names, np.full(len(series), time), np.full(len(series), 7.0))
    for each in series:
        model.put(each, time, 7.0)


def forget(catalog: Catalog, model: Model, servers, metrics) -> None:
    series = [each for server in servers for metric in metrics if (each := (server, metric)) in model.last]
    catalog.forget(ids_of(catalog, series))
    for each in series:
        del model.last[each]


def ask(catalog: Catalog, model: Model, *query) -> None:
    check(catalog, model, query)


@given(st.lists(steps, max_size=25), st.sampled_from([5, 12, 1000]))
@settings(max_examples=300)
def test_the_catalogue_says_what_dictionaries_say(done: list[tuple], limit: int):
    catalog, model = Catalog(limit), Model(limit)
    for step, *arguments in done:
        {"write": take_frame, "restore": restore, "forget": forget, "ask": ask}[step](catalog, model, *arguments)
        assert catalog.alive == len(model.last)
    check(catalog, model, ((), "", ()))
    assert catalog.infos == model.infos


def test_many_series_in_many_frames_stand_in_the_order_of_their_names():
    generator = np.random.default_rng(1)
    catalog = Catalog(100_000)
    servers = [f"s{at:03}" for at in generator.permutation(60).tolist()]
    metrics = [f"m{at}" for at in generator.permutation(50).tolist()]
    for at, server in enumerate(servers):
        write(catalog, frame(1, [server], metrics[: at + 1], np.ones((1, min(at + 1, 50)))))
        if at % 7 == 0:
            listed(catalog)
    expected = sorted((server, metric) for at, server in enumerate(servers) for metric in metrics[: at + 1])
    assert expected == listed(catalog)
    assert list(range(len(expected))) == sorted(ids_of(catalog, expected).tolist())


# ── forgetting ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_forgotten_series_is_not_there_until_a_sample_comes_and_keeps_its_id():
    catalog = Catalog(10)
    fill(catalog, [("a", "cpu"), ("a", "mem")])
    gone = ids_of(catalog, [("a", "cpu")])
    catalog.forget(gone)
    catalog.forget(gone)
    assert listed(catalog) == [("a", "mem")]
    assert (catalog.alive, catalog.count) == (1, 2)
    assert catalog.last(gone)[0][0] == NEVER
    assert np.isnan(catalog.last(gone)[1][0])
    fill(catalog, [("a", "cpu")], time=5)
    assert listed(catalog) == [("a", "cpu"), ("a", "mem")]
    assert gone.tolist() == ids_of(catalog, [("a", "cpu")]).tolist()
    assert (catalog.alive, catalog.count, catalog.last(gone)[0][0]) == (2, 2, 5)


def test_a_series_without_a_durable_sample_is_not_there_but_has_its_room():
    catalog = Catalog(1)
    layout = catalog.layout(("a",), ("cpu",))
    assert catalog.admit(layout, np.ones((1, 1), bool)) is None
    assert listed(catalog) == []
    assert catalog.alive == 0
    other = catalog.layout(("b",), ("cpu",))
    refused = catalog.admit(other, np.ones((1, 1), bool))
    assert refused is not None
    assert refused.tolist() == [[True]]


def test_a_sample_under_way_while_its_series_is_forgotten_brings_it_back():
    catalog = Catalog(10)
    fill(catalog, [("a", "cpu")])
    sample = frame(2, ["a"], ["cpu"], np.ones((1, 1)))
    layout = catalog.layout(sample.servers, sample.metrics)
    catalog.admit(layout, np.ones((1, 1), bool))
    catalog.forget(layout.ids.ravel())
    catalog.observe(layout, sample)
    assert listed(catalog) == [("a", "cpu")]
    assert catalog.alive == 1


@pytest.mark.parametrize("remembered", [1, 64])
@given(
    frames=st.lists(
        st.tuples(st.sampled_from(["a", "ab", "ba", "bc", "abc"]), st.integers(1, 5), st.sampled_from([1.0, np.nan])),
        max_size=20,
    ),
    forgotten=st.integers(0, 20),
    asked=st.sets(st.integers(0, 20)),
)
def test_complete_frames_leave_the_same_newest_samples_however_late_they_are_taken(
    remembered: int, frames: list[tuple[str, int, float]], forgotten: int, asked: set[int]
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("openmanager_timeseries.catalog._REMEMBERED_FRAMES", remembered)
        late, early = Catalog(6), Catalog(6)
        for number, (servers, time, last) in enumerate(frames):
            values = number + np.arange(2.0 * len(servers)).reshape(-1, 2)
            values[-1, -1] *= last
            for catalog in (late, early):
                sample = frame(time, list(servers), ["cpu", "mem"], values)
                layout = catalog.layout(sample.servers, sample.metrics)
                catalog.admit(layout, ~np.isnan(values))
                catalog.observe(layout, sample, complete=catalog is late and not np.isnan(values).any())
                if number == forgotten:
                    gone = ids_of(catalog, [("a", "mem"), (servers[0], "cpu")])
                    catalog.forget(gone[gone >= 0])
                if number in asked:
                    catalog.last(np.arange(catalog.count))
        assert listed(late) == listed(early)
        assert (late.alive, late.count) == (early.alive, early.count)
        for ours, theirs in zip(late.last(np.arange(late.count)), early.last(np.arange(early.count)), strict=True):
            np.testing.assert_array_equal(ours, theirs)


# ── what is late ───────────────────────────────────────────────────────────────────────────────────────────────────


def observed(catalog: Catalog, sample: Frame) -> bool:
    """Take a frame as the history does; return whether it was late."""
    layout = catalog.layout(sample.servers, sample.metrics)
    catalog.admit(layout, ~np.all(np.isnan(sample.values), axis=0))
    late = catalog.is_late(layout, sample)
    catalog.observe(layout, sample, complete=not np.isnan(sample.values).any())
    return late


@given(
    frames=st.lists(
        st.tuples(
            st.sampled_from(["a", "ab", "ba", "bc", "abc"]),
            st.sampled_from([("cpu", "mem"), ("mem",)]),
            st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True),
            st.sampled_from([1.0, 2.0]),
            st.lists(st.booleans(), min_size=18, max_size=18),
        ),
        max_size=14,
    ),
    asked=st.sets(st.integers(0, 14)),
)
@settings(max_examples=150)
def test_a_frame_is_late_when_a_dictionary_of_the_newest_samples_says_so(frames: list, asked: set[int]):
    catalog, newest = Catalog(6), dict[Series, tuple[int, float]]()
    for number, (servers, metrics, times, value, gaps) in enumerate(frames):
        shape = len(times), len(servers), len(metrics)
        here = np.array(gaps[: np.prod(shape)]).reshape(shape) | (number % 2 == 0)
        sample = Frame(
            times=np.sort(np.array(times)),
            servers=tuple(servers),
            metrics=metrics,
            values=np.where(here, value, np.nan),
        )
        late = False
        for at, server, metric in np.argwhere(here).tolist():
            time, (last, held) = int(sample.times[at]), newest.get((servers[server], metrics[metric]), (0, 0.0))
            late |= time < last or (time == last and (len(times) > 1 or held != value))
        for at, server, metric in np.argwhere(here).tolist():
            time, series = int(sample.times[at]), (servers[server], metrics[metric])
            if time >= newest.get(series, (0, 0.0))[0]:
                newest[series] = time, value
        assert observed(catalog, sample) is late
        if number in asked:
            catalog.last(np.arange(catalog.count))


def test_a_late_sample_is_noticed_beside_frames_that_were_only_remembered():
    catalog = Catalog(100)
    fleet = [[f"s{group}-{at}" for at in range(5)] for group in range(4)]
    ticks = [
        observed(catalog, frame(time, servers, ["cpu", "mem"], np.full((5, 2), float(time))))
        for time in (1, 2, 3)
        for servers in fleet
    ]
    assert not any(ticks)
    assert len(catalog._newest) == 4  # asking has not made it slow
    assert not observed(catalog, frame(4, ["s2-3"], ["cpu"], np.ones((1, 1))))
    assert not observed(catalog, frame(4, fleet[2][:3], ["cpu"], np.ones((3, 1))))
    assert observed(catalog, frame(3, ["s3-3"], ["mem"], np.full((1, 1), 9.0)))
    assert not observed(catalog, frame(3, ["s3-3"], ["mem"], np.full((1, 1), 9.0)))
    assert observed(catalog, frame(2, ["s3-4"], ["mem"], np.full((1, 1), 2.0)))


def test_a_repetition_of_what_nobody_judged_is_late():
    catalog = Catalog(10)
    again = frame(3, ["a"], ["cpu"], np.ones((1, 1)))
    write(catalog, again)
    assert observed(catalog, again)
    newer = frame(4, ["a"], ["cpu"], np.ones((1, 1)))
    assert not observed(catalog, newer)
    assert not observed(catalog, newer)


def test_a_series_that_was_forgotten_has_no_late_samples():
    catalog = Catalog(10)
    assert not observed(catalog, frame(3, ["a"], ["cpu"], np.ones((1, 1))))
    catalog.forget(ids_of(catalog, [("a", "cpu")]))
    assert not observed(catalog, frame(2, ["a"], ["cpu"], np.ones((1, 1))))


def test_a_layout_is_the_same_object_until_one_of_its_series_is_forgotten():
    catalog = Catalog(10)
    fill(catalog, [("a", "cpu"), ("b", "cpu")])
    kept, lost = catalog.layout(("a",), ("cpu",)), catalog.layout(("b",), ("cpu",))
    catalog.forget(lost.ids.ravel())
    assert kept is catalog.layout(("a",), ("cpu",))
    assert lost is not catalog.layout(("b",), ("cpu",))
    assert catalog.layout(("b",), ("cpu",)).ids.tolist() == [[-1]]


def test_layouts_of_many_servers_are_all_kept():
    catalog = Catalog(100_000)
    names = [(f"server-{at}",) for at in range(10_000)]
    first = [catalog.layout(name, ("cpu", "mem")) for name in names]
    assert all(
        catalog.layout(name, ("mem"[:], "cpu")[::-1]) is layout for name, layout in zip(names, first, strict=True)
    )


def test_layouts_that_never_come_again_do_not_fill_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("openmanager_timeseries.catalog._LAYOUT_CELLS", 10_000)
    catalog = Catalog(0)
    steady = catalog.layout(("a",), ("cpu",))
    for at in range(2000):
        catalog.layout(("a",), (f"m{at}",))
        assert steady is catalog.layout(("a",), ("cpu",))
    held = catalog._layouts
    assert sum(len(group.layouts) for age in (held._young, held._old) for group in age.values()) <= 400


# ── the limit ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_series_over_the_limit_are_refused_and_find_room_when_others_are_forgotten():
    catalog = Catalog(3)
    fill(catalog, [("a", "cpu"), ("a", "mem")])
    layout = catalog.layout(("a", "b"), ("cpu", "mem"))
    refused = catalog.admit(layout, np.ones((2, 2), bool))
    assert refused is not None
    assert refused.tolist() == [[False, False], [False, True]]
    catalog.forget(ids_of(catalog, [("a", "cpu")]))
    assert catalog.admit(layout, np.ones((2, 2), bool)) is None


def test_a_forgotten_series_has_no_room_kept_for_it():
    catalog = Catalog(2)
    fill(catalog, [("a", "cpu"), ("a", "mem")])
    catalog.forget(ids_of(catalog, [("a", "cpu")]))
    fill(catalog, [("b", "cpu"), ("a", "cpu")])
    assert listed(catalog) == [("a", "mem"), ("b", "cpu")]
    assert catalog.alive == 2


def test_a_stored_catalogue_is_taken_up_to_the_limit():
    catalog = Catalog(2)
    catalog.restore(["a", "b", "c"], ["cpu"] * 3, np.array([3, NEVER, 1]), np.array([1.0, np.nan, 2.0]))
    assert listed(catalog) == [("a", "cpu")]
    catalog.restore(["a", "a"], ["cpu", "mem"], np.array([2, 9]), np.array([8.0, 9.0]))
    assert catalog.last(ids_of(catalog, [("a", "cpu")]))[0].tolist() == [3]


# ── what is known of servers and metrics ───────────────────────────────────────────────────────────────────────────


def test_kinds_and_temporalities_follow_what_is_told():
    catalog = Catalog(10)
    fill(catalog, [("a", "cpu{core=0}"), ("a", "mem")])
    ids = ids_of(catalog, [("a", "mem"), ("a", "cpu{core=0}"), ("a", "mem")])
    assert catalog.kinds(ids).tolist() == [0, 0, 0]
    counter, delta = frame_pb2.METRIC_KIND_COUNTER, frame_pb2.TEMPORALITY_DELTA
    catalog.learn((), [MetricInfo(name="cpu", kind=counter, temporality=delta)])
    assert [0, counter, 0] == catalog.kinds(ids).tolist()
    assert [0, delta, 0] == catalog.temporalities(ids).tolist()
    fill(catalog, [("b", "cpu{core=1}")])
    assert [counter] == catalog.kinds(ids_of(catalog, [("b", "cpu{core=1}")])).tolist()
    assert catalog.kinds(np.empty(0, np.int64)).tolist() == []


def test_a_filter_follows_what_is_told_of_servers():
    catalog = Catalog(10)
    fill(catalog, [("a", "cpu"), ("b", "cpu")])
    assert listed(catalog, (), "role = web", ()) == []
    catalog.learn([ServerInfo(id="b", role="web"), ServerInfo(id="c", role="web")], ())
    assert listed(catalog, (), "role = web", ()) == [("b", "cpu")]
    fill(catalog, [("c", "cpu")])
    assert listed(catalog, (), "role = web", ()) == [("b", "cpu"), ("c", "cpu")]
    catalog.learn([ServerInfo(id="b", role="db")], ())
    assert listed(catalog, (), "role = web", ()) == [("c", "cpu")]


def test_what_is_remembered_of_questions_is_bounded():
    catalog = Catalog(1000)
    fill(catalog, [(f"s{at}", f"m{at % 9}") for at in range(300)])
    for at in range(300):
        assert len(model := listed(catalog, (), f"id != s{at}", (f"m{at % 9}", f"x{at}"))) in {32, 33, 34}, model
    assert sum(answer.ids.nbytes for answer in catalog._answers.values()) <= 4 * catalog.count
    assert len(catalog._comparisons.held) <= 32
    assert len(catalog._patterns.held) <= 32
    catalog.select((), "", tuple(f"name{at}" for at in range(2000)))
    assert all(len(question) < 1000 for question in catalog._patterns.held)


def test_malformed_selectors_are_refused_every_time():
    catalog = Catalog(10)
    for _ in range(2):
        with pytest.raises(InvalidArgumentError):
            catalog.select((), "", ("cpu{",))
        with pytest.raises(InvalidArgumentError):
            catalog.select((), "role ~ web", ())
        with pytest.raises(InvalidArgumentError):
            catalog.select((), "unknown = web", ())


# ── threads ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_series_are_found_in_threads_while_others_come():
    catalog = Catalog(1_000_000)
    known = [(f"a{at}", f"m{at % 5}") for at in range(50)]
    fill(catalog, known)
    catalog.learn((), [MetricInfo(name=f"m{at}", kind=at) for at in range(5)])
    expected = ids_of(catalog, known).tolist()
    wrong: list[object] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            ids = ids_of(catalog, known)
            if ids.tolist() != expected or catalog.kinds(ids).tolist() != [at % 5 for at in range(50)]:
                wrong.append(ids)
            if list(zip(*catalog.names(ids), strict=True)) != known:
                wrong.append(ids)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for at in range(300):
        fill(catalog, [(f"b{at}", f"m{at}")])
        catalog.learn((), [MetricInfo(name="other", kind=at % 3)])
        catalog.forget(ids_of(catalog, [(f"b{at // 2}", f"m{at // 2}")]))
        listed(catalog)
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []


# ── paging ─────────────────────────────────────────────────────────────────────────────────────────────────────────

ALL = ((), "", ())
HEAD = provenance_pb2.Provenance(source="head")


def read_page(catalog: Catalog, size: int, token: str, query=ALL) -> pb.ListSeriesResponse:
    return series_page(catalog, query, size, token, HEAD)


def pages(catalog: Catalog, size: int, query=ALL) -> list[list[Series]]:
    found, token = [], ""
    while True:
        response = read_page(catalog, size, token, query)
        found.append([(row.server, row.metric) for row in response.series])
        token = response.next_page_token
        if not token:
            return found


def test_every_page_of_every_size_is_as_the_whole():
    catalog = Catalog(1000)
    fill(catalog, [(server, metric) for server in SERVERS for metric in METRICS])
    for query in [ALL, (("a", "B"), "", ("cpu",)), ((), 'id : "b"', ()), (("nobody",), "", ())]:
        whole = listed(catalog, *query)
        for size in range(1, len(whole) + 2):
            found = pages(catalog, size, query)
            assert whole == [series for each in found for series in each]
            assert all(len(each) == size for each in found[:-1])
            assert len(found) == max(1, -(-len(whole) // size))


def test_a_page_says_what_is_known():
    catalog = Catalog(10)
    fill(catalog, [("a", "cpu{core=0}"), ("a", "mem")], time=1_500_000_000)
    catalog.learn((), [MetricInfo(name="cpu", unit="s", kind=2)])
    response = read_page(catalog, 1, "")
    assert (response.total_count, response.provenance) == (2, HEAD)
    (row,) = response.series
    assert (
        row.server,
        row.metric,
        row.metric_info.name,
        row.metric_info.unit,
        row.metric_info.kind,
    ) == ("a", "cpu{core=0}", "cpu", "s", 2)
    assert (row.last_time.seconds, row.last_time.nanos) == (1, 500_000_000)
    (row,) = read_page(catalog, 1, response.next_page_token).series
    assert (row.metric, row.metric_info.name, row.metric_info.kind) == ("mem", "mem", 0)


@given(
    st.integers(1, 7),
    st.lists(
        st.tuples(st.booleans(), st.sampled_from([*SERVERS, "0", "aa"]), st.sampled_from([*METRICS, "a", "zz"])),
        max_size=40,
    ),
    st.integers(1, 5),
)
@settings(max_examples=200)
def test_what_lives_throughout_is_listed_once_whatever_comes_and_goes(size: int, changes: list, pace: int):
    catalog = Catalog(1000)
    first = [(server, metric) for server in SERVERS for metric in METRICS[::2]]
    fill(catalog, first)
    throughout, ever = set(first), set(first)
    found: list[Series] = []
    token = ""
    while True:
        response = read_page(catalog, size, token)
        found += [(row.server, row.metric) for row in response.series]
        token = response.next_page_token
        if not token:
            break
        for come, server, metric in changes[:pace]:
            if come:
                fill(catalog, [(server, metric)])
                ever.add((server, metric))
            elif (ids := ids_of(catalog, [(server, metric)]))[0] >= 0:
                catalog.forget(ids)
                throughout.discard((server, metric))
        changes = changes[pace:]
    assert found == sorted(set(found))
    assert throughout <= set(found) <= ever


def test_tokens_of_other_queries_and_sizes_below_zero_are_refused():
    catalog = Catalog(1000)
    fill(catalog, [(server, "cpu") for server in SERVERS])
    token = read_page(catalog, 2, "").next_page_token
    with pytest.raises(InvalidArgumentError, match="invalid page token"):
        read_page(catalog, 2, token, ((), "", ("cpu",)))
    with pytest.raises(InvalidArgumentError, match="invalid page token"):
        read_page(catalog, 2, token[:-1])
    with pytest.raises(InvalidArgumentError, match="page_size"):
        read_page(catalog, -1, "")


def test_a_page_after_a_series_that_never_was_begins_behind_its_name():
    catalog = Catalog(1000)
    fill(catalog, [("a", "cpu"), ("c", "cpu")])
    response = read_page(catalog, 5, page.encode_token(ALL, ["b", "cpu"]))
    assert [row.server for row in response.series] == ["c"]


def test_a_page_holds_at_most_a_thousand():
    catalog = Catalog(10_000)
    write(catalog, frame(1, ["a"], [f"m{at}" for at in range(1200)], np.ones((1, 1200))))
    assert len(read_page(catalog, 5000, "").series) == 1000
    assert len(read_page(catalog, 0, "").series) == 100


def test_of_two_samples_of_one_time_the_one_that_came_later_counts_whatever_comes_late():
    catalog = Catalog(10)
    for time, servers, value in ((5, "ab", 1.0), (5, "a", 2.0), (20, "a", 111.0), (20, "ab", 222.0), (10, "a", 333.0)):
        sample = frame(time, list(servers), ["cpu"], np.full((len(servers), 1), value))
        layout = catalog.layout(sample.servers, sample.metrics)
        catalog.admit(layout, np.ones((len(servers), 1), bool))
        catalog.observe(layout, sample, complete=True)
    assert catalog.last(ids_of(catalog, [("a", "cpu")]))[1].tolist() == [222.0]


def test_what_is_remembered_of_frames_is_bounded_and_holds_one_tick(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("openmanager_timeseries.catalog._REMEMBERED_BYTES", 100)
    catalog = Catalog(100)
    for time in (1, 2):
        for server in map(str, range(20)):
            values = np.arange(time, time + 100.0).reshape(100, 1, 1)
            sample = Frame(times=np.arange(time, time + 100), servers=(server,), metrics=("cpu",), values=values)
            layout = catalog.layout(sample.servers, sample.metrics)
            catalog.admit(layout, np.ones((1, 1), bool))
            catalog.observe(layout, sample, complete=True)
    held = catalog._newest.values()
    assert sum(each.values.nbytes for each in held) == catalog._newest_bytes <= 100
    assert all(each.values.base is None for each in held)
    times, values = catalog.last(np.arange(20))
    assert set(times.tolist()) == {101}
    assert set(values.tolist()) == {101.0}
