"""What grows is found, and what comes and goes is not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np

from chaos import usage
from chaos.growth import Growth, Lives, growth
from chaos.usage import Usage

DICE = np.random.default_rng(1)


def taken(rss: float = 100.0, descriptors: int = 20, threads: int = 5) -> Usage:
    return Usage(rss=rss, pss=rss / 2, descriptors=descriptors, threads=threads)


def grown(take: Callable[[float], Usage], seconds: int = 3600) -> Growth:
    """Return the growth of a process of which `take` says what it takes after a share of its life."""
    lives = Lives()
    for at in range(0, seconds, 10):
        lives.add("cache", 7, at, take(at / seconds))
    return growth(lives.of("cache")[0], restarts=0)


def test_a_leak_is_told_by_its_slope():
    found = grown(lambda share: taken(rss=100 + 3 * share + DICE.normal(scale=0.5)))
    assert abs(found.rss_slope - 3) < 0.5
    assert [text.partition(" by")[0] for text in found.broken()] == ["cache: memory grows"]


def test_a_slope_that_may_be_chance_is_no_leak():
    found = grown(lambda share: taken(rss=100 + 5 * np.sin(40 * share)))
    assert abs(found.percent_per_hour) < 2 * found.percent_error + 1
    assert list(found.broken()) == []


def test_what_is_taken_at_the_start_is_no_leak():
    found = grown(lambda share: taken(rss=100 + 50 * min(1.0, 4 * share), threads=5 + 10 * (share > 0.2)))
    assert abs(found.percent_per_hour) < 0.01
    assert list(found.broken()) == []


def test_descriptors_that_come_and_go_are_no_leak_and_those_that_stay_are():
    assert list(grown(lambda share: taken(descriptors=20 + int(100 * share) % 7)).broken()) == []
    found = grown(lambda share: taken(descriptors=20 + int(100 * share) % 7 + int(5 * share)))
    assert list(found.broken()) == ["cache: 2 more file descriptors"]


def test_threads_that_stay_are_a_leak():
    assert list(grown(lambda share: taken(threads=5 + (share > 0.6))).broken()) == ["cache: 1 more threads"]


def test_a_short_life_is_not_judged():
    found = grown(lambda share: taken(rss=100 + 100 * share), seconds=1500)
    assert found.rss_slope > 100
    assert list(found.broken()) == []


def test_the_longest_life_counts():
    lives = Lives()
    for at in range(0, 3600, 10):
        lives.add("cache", 1 if at < 300 else 2, at, taken(rss=500 if at < 300 else 100))
    (found,) = lives.growths()
    assert (found.restarts, found.rss, round(found.rss_slope, 6)) == (1, 100.0, 0.0)


def test_a_process_is_measured_until_it_ends():
    command = [sys.executable, "-c", "print('up', flush=True); input()"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    found = usage.of(child.pid)
    assert found is not None
    assert 1 < found.pss <= found.rss < 100
    assert (found.descriptors >= 3, found.threads) == (True, 1)
    child.communicate(b"\n")
    assert usage.of(child.pid) is None
