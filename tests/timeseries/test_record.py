import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openmanager_timeseries.record import (
    MAX_RECORD_BYTES,
    RECORD_OVERHEAD,
    Damage,
    Record,
    decode_at,
    encode_header,
    pack_trace,
    scan,
    unpack_trace,
)

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
properties = settings(max_examples=150, database=None)


def encode(record):
    return encode_header(record) + record.payload


def records(count, *, first=1, payload=lambda position: b"payload of %d" % position):
    return [
        Record(position, 10**18 + position, 10 * position, 10, "", payload(position))
        for position in range(first, first + count)
    ]


def read(data, *, offset=0, position=0, **limits):
    found = [item for item, _ in scan(data, offset, position, **limits)]
    return [item for item in found if isinstance(item, Record)], [item for item in found if isinstance(item, Damage)]


def damaged_ranges(data, position=0):
    return [(item.offset, item.offset + item.size) for item in read(data, position=position)[1]]


@properties
@given(
    position=st.integers(1, 2**62),
    nanos=st.integers(-(2**63), 2**63 - 1),
    accepted=st.integers(0, 2**64 - 1),
    samples=st.integers(0, 2**32 - 1),
    payload=st.binary(max_size=500),
    before=st.binary(max_size=80),
    after=st.binary(max_size=80),
)
def test_a_record_is_read_as_it_was_written(position, nanos, accepted, samples, payload, before, after):
    record = Record(position, nanos, accepted, samples, TRACE, payload)
    data = before + encode(record) + after
    assert decode_at(data, len(before)) == (record, len(data) - len(after))


@properties
@given(payload=st.binary(max_size=200), data=st.data())
def test_no_changed_bit_goes_unnoticed(payload, data):
    encoded = bytearray(encode(Record(7, 10**18, 100, 5, TRACE, payload)))
    bit = data.draw(st.integers(0, 8 * len(encoded) - 1))
    encoded[bit // 8] ^= 1 << bit % 8
    assert decode_at(bytes(encoded), 0) is None


@properties
@given(payload=st.binary(max_size=200), data=st.data())
def test_a_cut_record_is_none(payload, data):
    encoded = encode(Record(7, 10**18, 100, 5, TRACE, payload))
    assert decode_at(encoded[: data.draw(st.integers(0, len(encoded) - 1))], 0) is None


def test_a_length_beyond_the_limit_is_no_record():
    encoded = encode(Record(1, 1, 1, 1, "", bytes(MAX_RECORD_BYTES + 1)))
    assert decode_at(encoded, 0) is None
    assert decode_at(encode(Record(1, 1, 1, 1, "", bytes(MAX_RECORD_BYTES))), 0) is not None


@pytest.mark.parametrize("trace", [TRACE, "", "00-" + "f" * 32 + "-" + "0" * 15 + "1-ff"])
def test_a_trace_survives(trace):
    assert unpack_trace(pack_trace(trace)) == trace


@pytest.mark.parametrize(
    "trace",
    [
        "x",
        "00-ab-cd-01",
        TRACE[:-1],
        TRACE + "0",
        TRACE.replace("4bf9", "4b 9"),
        TRACE.upper(),
        "00-" + "0" * 32 + "-" + "0" * 16 + "-1ff",
        "0-" + "a" * 31 + "-" + "b" * 16 + "-01",
        "----",
        "00-zz-zz-zz",
    ],
)
def test_a_malformed_trace_is_left_out(trace):
    assert unpack_trace(pack_trace(trace)) == ""


@properties
@given(st.binary(max_size=2000), st.integers(0, 50))
def test_any_bytes_are_read_without_an_error_and_cover_the_data(data, position):
    offset = 0
    for item, after in scan(data, 0, position):
        if isinstance(item, Damage):
            assert (item.offset, item.offset + item.size) == (offset, after)
        assert after > offset
        offset = after
    assert offset == len(data)


def test_records_before_between_and_after_damage_are_read():
    written = records(10)
    parts = [encode(record) for record in written]
    parts[4] = bytes(len(parts[4]))
    found, damage = read(b"".join(parts))
    assert found == written[:4] + written[5:]
    assert [(each.offset, each.size) for each in damage] == [(sum(map(len, parts[:4])), len(parts[4]))]


def test_a_torn_tail_is_damage_up_to_the_end():
    written = records(3)
    data = b"".join(map(encode, written))
    cut = len(data) - 5
    assert read(data[:cut]) == (written[:2], [Damage(len(encode(written[0])) * 2, cut - len(encode(written[0])) * 2)])


@pytest.mark.parametrize("lost", [1, 70, 500], ids="lost={}".format)
@pytest.mark.parametrize("filler", [b"\0", b"\xff", None], ids=["zeros", "ones", "random"])
def test_a_hole_of_any_size_is_passed_over(lost, filler):
    written = records(lost + 20)
    parts = [encode(record) for record in written]
    size = sum(map(len, parts[10 : 10 + lost]))
    hole = random.Random(1).randbytes(size) if filler is None else filler * size
    found, damage = read(b"".join(parts[:10]) + hole + b"".join(parts[10 + lost :]))
    assert found == written[:10] + written[10 + lost :]
    assert [each.size for each in damage] == [size]


@pytest.mark.parametrize("change", [-30, -1, 1, 30, 700])
def test_records_are_found_again_after_bytes_were_inserted_or_deleted(change):
    written = records(50)
    data = b"".join(map(encode, written))
    at = len(data) // 2
    data = data[:at] + b"?" * change + data[at:] if change > 0 else data[:at] + data[at - change :]
    found, damage = read(data)
    assert [each for each in written if each not in found] == [written[25]]
    assert len(damage) == 1


def test_a_deleted_range_of_whole_records_is_a_gap():
    written = records(400)
    found, damage = read(b"".join(encode(record) for record in written[:10] + written[300:]))
    assert found == written[:10] + written[300:]
    assert damage == []


@pytest.mark.parametrize("copied", [(40, 41), (60, 75), (2, 3), (1, 9)], ids="{0[0]}-{0[1]}".format)
def test_whole_records_in_a_wrong_place_hide_none_of_those_they_precede(copied):
    """The records are of one size, so that the copied ones stand exactly where others were."""
    written = records(99, first=100)
    parts = [encode(record) for record in written]
    start, end = copied
    parts[10 : 10 + end - start] = parts[start:end]
    found, damage = read(b"".join(parts), position=99)
    assert found == written[:10] + written[10 + end - start :]
    assert len(damage) == 1


def test_copied_bytes_that_hold_whole_records_hide_none_of_those_they_precede():
    written = records(300, payload=lambda position: b"%d" % position * (position % 7))
    data = b"".join(map(encode, written))
    spliced = data[:3010] + data[9005:14005] + data[8010:]
    found, _ = read(spliced)
    intact = [record for record in written if encode(record) in data[:3010] or encode(record) in data[8010:]]
    assert [record for record in intact if record not in found] == []
    assert found == sorted(found, key=lambda record: record.position)


def test_what_lies_beyond_the_last_position_is_not_believed():
    written = records(10)
    data = b"".join(map(encode, written))
    found, damage = read(data, last=7)
    assert found == written[:7]
    assert damaged_ranges(data) == []
    assert [each.size for each in damage] == [len(b"".join(map(encode, written[7:])))]


def test_a_scan_may_begin_between_two_records():
    written = records(10)
    data = b"".join(map(encode, written))
    assert read(data, offset=3 * len(encode(written[0])), position=3)[0] == written[3:]


def test_a_checksum_that_was_made_to_fit_a_wrong_length_is_needed_for_belief():
    inner = encode(Record(2, 1, 1, 1, "", b""))[:-4]
    data = encode(Record(1, 1, 1, 1, "", b"a")) + struct.pack("<I", 10) + inner + encode(Record(3, 1, 1, 1, "", b"c"))
    assert [record.position for record in read(data)[0]] == [1, 3]


def test_a_segment_full_of_zeros_is_passed_over():
    written = records(2)
    head = b"".join(map(encode, written))
    data = head + bytes(16 << 20)
    assert read(data) == (written, [Damage(len(head), 16 << 20)])


def test_a_header_takes_as_much_as_is_said():
    assert len(encode_header(records(1)[0])) == RECORD_OVERHEAD
