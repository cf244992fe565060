"""The checksum finds every error in up to three words, wherever they are, and does not depend on how it is taken."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.checksum import BLOCK_BYTES, ROW_WORDS, checksum, copy_with_checksum

ROW = 8 * ROW_WORDS
SIZES = (0, 1, 7, 8, 1000, ROW, ROW + 5, 3 * ROW, 5 * ROW - 24, BLOCK_BYTES + 8, 2 * BLOCK_BYTES + ROW + 3)
NUM_WORDS = 5 * BLOCK_BYTES // 16
"""Two blocks and a half."""


def data_of(size, seed=0):
    return np.random.default_rng([seed, size]).integers(0, 256, size, dtype=np.uint8)


def by_definition(data):
    """The sums in Python's own integers: word i of the padded bytes is in row i // R and column i % R."""
    padded = bytes(data) + bytes(-len(data) % 8)
    words = np.frombuffer(padded, "<u8").tolist()
    rows, columns = [0] * -(-len(words) // ROW_WORDS), [0] * ROW_WORDS
    for i, word in enumerate(words):
        rows[i // ROW_WORDS] += word
        columns[i % ROW_WORDS] += word
    digest = hashlib.blake2b(len(data).to_bytes(8, "little"), digest_size=8)
    digest.update(b"".join((each % 2**64).to_bytes(8, "little") for each in (*rows, *columns)))
    return int.from_bytes(digest.digest(), "little")


@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_sums_by_row_and_by_column(size):
    data = data_of(size)
    assert checksum(data) == by_definition(data)


@pytest.mark.parametrize("size", SIZES)
def test_it_is_taken_of_what_was_copied(size):
    source, target = data_of(size), np.zeros(size, np.uint8)
    assert copy_with_checksum(target, source) == checksum(source)
    assert np.array_equal(target, source)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, NUM_WORDS - 1), st.integers(1, 2**64 - 1)), min_size=1, max_size=3))
def test_an_error_in_up_to_three_words_is_found(errors):
    words = data_of(8 * NUM_WORDS).view(np.uint64)
    before, whole = checksum(words), words.copy()
    for place, error in errors:
        words[place] ^= np.uint64(error)
    assert checksum(words) != before or np.array_equal(words, whole)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, NUM_WORDS - 1), st.integers(1, NUM_WORDS - 1))
def test_two_words_that_changed_places_are_found(one, distance):
    words = data_of(8 * NUM_WORDS).view(np.uint64)
    other = (one + distance) % len(words)
    before = checksum(words)
    words[[one, other]] = words[[other, one]]
    assert checksum(words) != before


@pytest.mark.parametrize("chunk", [8, 64, 4096, ROW, BLOCK_BYTES])
def test_pieces_that_changed_places_are_found(chunk):
    data = data_of(4 * BLOCK_BYTES)
    before = checksum(data)
    pieces = data.reshape(-1, chunk)
    pieces[[0, -1]] = pieces[[-1, 0]]
    assert checksum(data) != before


def test_a_tensor_of_zeros_is_not_one_of_more_zeros():
    assert checksum(np.zeros(64, np.uint8)) != checksum(np.zeros(72, np.uint8))


def test_words_in_the_corners_of_a_rectangle_can_cancel_out():
    """What the decision page says is not found: four errors, opposite in pairs, in two rows and two columns."""
    words = data_of(8 * NUM_WORDS).view(np.uint64)
    before = checksum(words)
    words[[3, ROW_WORDS + 4]] += np.uint64(5)
    words[[ROW_WORDS + 3, 4]] -= np.uint64(5)
    assert checksum(words) == before


def test_an_array_that_is_not_in_order_is_refused():
    with pytest.raises(ValueError, match="C order"):
        checksum(np.zeros((3, 4)).T)
