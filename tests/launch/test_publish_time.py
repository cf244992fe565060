"""The formulas against deliveries played bucket by bucket."""

import heapq

import pytest

from launch.publish_time import (
    Links,
    chain_seconds,
    check_seconds,
    gather_seconds,
    parts_seconds,
    pull_seconds,
    tree_seconds,
)

LINKS = Links(network=10.0, cards=4, copy=5.0, checksum=2.0)


def played_chain(num_buckets, num_receivers, seconds):
    """A node sends a bucket on when it has it and is done with the one before."""
    there = [number * seconds + seconds for number in range(num_buckets)]  # at the first receiver
    for _ in range(num_receivers - 1):
        free, arrived = 0.0, []
        for ready in there:
            free = max(free, ready) + seconds
            arrived.append(free)
        there = arrived
    return there[-1]


@pytest.mark.parametrize(("num_buckets", "num_receivers"), [(1, 1), (1, 5), (7, 1), (7, 5), (100, 32)])
def test_a_chain(num_buckets, num_receivers):
    expected = played_chain(num_buckets, num_receivers, 3.0 / 10)
    assert chain_seconds(num_buckets * 3.0, 3.0, num_receivers, LINKS) == pytest.approx(expected)


def played_doubling(num_receivers, seconds):
    """Whoever has the object sends it to one who has not, as soon as it can."""
    missing, free, last = num_receivers, [0.0], 0.0
    while missing:
        begin = heapq.heappop(free)
        missing -= 1
        last = begin + seconds
        for _ in range(2):
            heapq.heappush(free, last)
    return last


@pytest.mark.parametrize("num_receivers", [1, 2, 3, 4, 7, 8, 32])
def test_doubling(num_receivers):
    expected = played_doubling(num_receivers, 60.0 / 10)
    assert pull_seconds(60.0, num_receivers, LINKS) == pytest.approx(expected)
    assert tree_seconds(60.0, 3.0, num_receivers, LINKS) == pytest.approx(expected), "bucket by bucket it is the same"


def test_gathering_takes_what_comes_in_through_the_cards_of_one_node():
    parts = [5.0] * 8
    assert gather_seconds(sum(parts), 8, LINKS) == pytest.approx(sum(parts[1:]) / 10)
    assert gather_seconds(sum(parts), 8, LINKS, cards=4) == pytest.approx(sum(parts[1:]) / 40)


@pytest.mark.parametrize(("senders", "receivers", "copies"), [(4, 8, 1), (8, 8, 4), (16, 4, 2)])
def test_parts_are_bound_by_the_side_with_fewer_cards(senders, receivers, copies):
    sent, received = [0.0] * senders, [0.0] * receivers
    pieces = senders * receivers
    for _ in range(copies):
        for piece in range(pieces):
            sent[piece % senders] += 80.0 / pieces
            received[piece // senders] += 80.0 / pieces
    assert parts_seconds(80.0, senders, receivers, copies, LINKS) == pytest.approx(max(sent + received) / 10)


def test_checking():
    assert check_seconds(8.0, LINKS) == 4.0
    assert check_seconds(8.0, LINKS, threads=4) == 1.0
