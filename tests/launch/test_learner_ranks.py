"""Which process becomes which rank: those of a node in a row."""

import logging
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from cispo.learner.config import LearnerConfig
from launch.learner_ranks import LearnerRanks, row_by_row


class At:
    """A rank's process on a node."""

    def __init__(self, name, node):
        self.name, self.node, self.joined = name, node, None

    def call(self, method, *arguments):
        answer = Future()
        if method == "join":
            self.joined = arguments
        answer.set_result({"node": self.node, "address": f"{self.name}:1", "join": None}[method])
        return answer


def joined(nodes, config):
    """{process: (where it met the others, its rank)}."""
    handles = [At(f"learner-{number}", node) for number, node in enumerate(nodes)]
    LearnerRanks(handles, config, deadline_seconds=5.0).join(5.0)
    return {handle.name: handle.joined for handle in handles}


@pytest.mark.parametrize(
    ("nodes", "order"),
    [("aaaa", [0, 1, 2, 3]), ("abab", [0, 2, 1, 3]), ("babcab", [0, 2, 5, 1, 4, 3]), ("", []), ("a", [0])],
)
def test_nodes_come_in_the_order_of_their_first_process(nodes, order):
    assert row_by_row(nodes) == order


def test_ranks_of_a_node_are_in_a_row_and_all_meet_at_the_first():
    assert joined("abab", LearnerConfig()) == {
        "learner-0": ("learner-0:1", 0),
        "learner-2": ("learner-0:1", 1),
        "learner-1": ("learner-0:1", 2),
        "learner-3": ("learner-0:1", 3),
    }


@pytest.mark.parametrize(("nodes", "wide"), [("abab", 0), ("aabbbb", 0), ("abbbab", 0), ("aaab", 1), ("aaabbb", 1)])
def test_tensor_parallel_groups_over_two_nodes_are_told(nodes, wide, caplog):
    megatron = SimpleNamespace(kind="megatron", layout=SimpleNamespace(tensor=2))
    with caplog.at_level(logging.WARNING):
        joined(nodes, megatron)
    told = f"{wide} of {len(nodes) // 2} tensor-parallel groups of 2 ranks lie on more than one node"
    assert (told in caplog.text) == bool(wide)
