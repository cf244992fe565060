"""How long a publish takes on a cluster, by arithmetic: bytes over links. Nothing here was measured on one.

Every formula takes links at their full rate and nothing else on them, so it says what is possible at best by that way.
docs/scaling.md shows the numbers beside those that others have published.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Links:
    """Rates in bytes a second.

    Attributes:
        network: of one network card, each way; a node has one for each GPU.
        cards: of a node.
        copy: one thread's, between two places of a node's memory.
        checksum: one thread's.
    """

    network: float = 50e9
    cards: int = 8
    copy: float = 10e9
    checksum: float = 7e9


def gather_seconds(num_bytes: float, num_ranks: int, links: Links, *, cards: int = 1) -> float:
    """Until one rank has everybody's equal parts, which come in through `cards` cards of its node."""
    return num_bytes * (num_ranks - 1) / num_ranks / (cards * links.network)


def chain_seconds(num_bytes: float, bucket_bytes: float, num_receivers: int, links: Links) -> float:
    """Broadcast from node to node, each passing a bucket on while it receives the next."""
    num_buckets = math.ceil(num_bytes / bucket_bytes)
    return (num_buckets + num_receivers - 1) * bucket_bytes / links.network


def tree_seconds(num_bytes: float, bucket_bytes: float, num_receivers: int, links: Links) -> float:
    """Broadcast along a binomial tree, as gloo's: the sender sends every bucket once for each doubling."""
    rounds = math.ceil(math.log2(num_receivers + 1))
    return math.ceil(num_bytes / bucket_bytes) * rounds * bucket_bytes / links.network


def pull_seconds(num_bytes: float, num_receivers: int, links: Links) -> float:
    """Each node pulls an object from any node that has all of it: those that have it double."""
    return math.ceil(math.log2(num_receivers + 1)) * num_bytes / links.network


def parts_seconds(num_bytes: float, num_senders: int, num_receivers: int, copies: int, links: Links) -> float:
    """Every learner rank sends its part straight to the ranks that need it, all cards at once.

    Args:
        num_bytes: of one version.
        num_senders, num_receivers: ranks with a card each.
        copies: of the whole version on the receivers.
        links: of the cluster.
    """
    return max(copies * num_bytes / num_senders, copies * num_bytes / num_receivers) / links.network


def check_seconds(num_bytes: float, links: Links, *, threads: int = 1) -> float:
    """To sum a version up once in one process."""
    return num_bytes / links.checksum / threads
