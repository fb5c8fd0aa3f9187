"""What is replaced in an export, and what is not."""

from __future__ import annotations

import time

import pytest
from openmanager_metadata.interaction_redaction import ALL, EMAIL_ADDRESS, HOST_NAME, IP_ADDRESS, SECRET, redacted_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to ada.l+x@mail.example.org, please", "write to [email], please"),
        ("from 10.0.0.7:9100 to 192.168.1.255.", "from [ip]:9100 to [ip]."),
        ("version 1.2.3 of 300.1.1.1", "version 1.2.3 of 300.1.1.1"),
        ("at fe80::1 and 2001:db8:0:1:1:1:1:1, not 12:30", "at [ip] and [ip], not 12:30"),
        ("password=hunter2 and API_KEY: 'abc'", "password=[secret] and API_KEY: '[secret]'"),
        ('{"token": "abc"}', '{"token": "[secret]"}'),
        ("Authorization: Bearer abcdefghij.k", "Authorization: Bearer [secret]"),
        ("postgresql://me:pw@db/x", "postgresql://me:[secret]@db/x"),
        ("AKIAIOSFODNN7EXAMPLE ghp_abcdefghijklmnop sk-abcdefghijklmnop", "[secret] [secret] [secret]"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc", "[secret]"),
        ("hash 9f86d081884c7d659a2feaa0c55ad015", "hash [secret]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----", "[secret]"),
        ("a-word-with-very-many-hyphens-in-it", "a-word-with-very-many-hyphens-in-it"),
        ("db-7.eu.example.org fails, db-7 too", "[host] fails, [host] too"),
        ("see main.py, disk.usage and e.g. this", "see main.py, disk.usage and e.g. this"),
    ],
)
def test_what_looks_like_it_is_replaced(text: str, expected: str):
    assert redacted_text(text, ALL, ["db-7"]) == expected


def test_only_what_was_asked_for_is_replaced():
    text = "ada@example.org 10.0.0.1 password=x web.example.org"
    assert redacted_text(text, [EMAIL_ADDRESS]) == "[email] 10.0.0.1 password=x web.example.org"
    assert redacted_text(text, [IP_ADDRESS]) == "ada@example.org [ip] password=x web.example.org"
    assert redacted_text(text, [SECRET]) == "ada@example.org 10.0.0.1 password=[secret] web.example.org"
    assert redacted_text(text, [HOST_NAME]).endswith("10.0.0.1 password=x [host]")


@pytest.mark.parametrize(
    "text",
    ["a", "a.", "a@", "1.", "a:", "-----BEGIN ", "://a", "token", "token=", "eyJaaaaaaaaa.", "bearer ", "-", "=", "é"],
)
def test_no_text_takes_more_time_than_its_length(text: str):
    """Of the process's own time: a pattern that goes back would take minutes for these."""
    start = time.process_time()
    redacted_text(text * (256 * 1024 // len(text)), ALL, ["a.a", "web-01"])
    assert time.process_time() - start < 5
