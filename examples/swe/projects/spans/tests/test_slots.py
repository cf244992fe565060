import unittest

from spans import SpanSet, first_free, free_slots

OPEN = SpanSet([(9, 12), (13, 17)])
TAKEN = SpanSet([(10, 11), (15, 18)])


class FreeSlotsTest(unittest.TestCase):
    def test_slots_between_bookings(self):
        self.assertEqual(free_slots(OPEN, TAKEN, 1), [(9, 10), (11, 12), (13, 14), (14, 15)])

    def test_a_slot_may_fill_its_span(self):
        self.assertEqual(free_slots(OPEN, TAKEN, 2), [(13, 15)])

    def test_nothing_fits(self):
        self.assertEqual(free_slots(OPEN, TAKEN, 3), [])

    def test_overlapping_slots(self):
        self.assertEqual(free_slots(SpanSet([(0, 4)]), SpanSet(), 2, step=1), [(0, 2), (1, 3), (2, 4)])

    def test_bad_lengths_are_refused(self):
        for length, step in ((0, None), (-1, None), (1, 0)):
            with self.assertRaises(ValueError):
                free_slots(OPEN, TAKEN, length, step)


class FirstFreeTest(unittest.TestCase):
    def test_first(self):
        self.assertEqual(first_free(OPEN, TAKEN, 1), (9, 10))
        self.assertEqual(first_free(OPEN, TAKEN, 2), (13, 15))

    def test_not_before(self):
        self.assertEqual(first_free(OPEN, TAKEN, 1, earliest=9.5), (11, 12))
        self.assertEqual(first_free(OPEN, TAKEN, 1, earliest=13.5), (13.5, 14.5))
        self.assertEqual(first_free(OPEN, TAKEN, 1, earliest=3), (9, 10))

    def test_none(self):
        self.assertIsNone(first_free(OPEN, TAKEN, 5))
        self.assertIsNone(first_free(OPEN, TAKEN, 1, earliest=14.5))
