import unittest

from spans import SpanSet


class BuildingTest(unittest.TestCase):
    def test_empty(self):
        self.assertEqual(SpanSet().pairs(), [])
        self.assertEqual(len(SpanSet()), 0)

    def test_spans_are_sorted(self):
        self.assertEqual(SpanSet([(7, 9), (1, 3)]).pairs(), [(1, 3), (7, 9)])

    def test_overlapping_spans_are_joined(self):
        self.assertEqual(SpanSet([(1, 5), (3, 8), (10, 12)]).pairs(), [(1, 8), (10, 12)])

    def test_a_span_inside_another_disappears(self):
        self.assertEqual(SpanSet([(1, 10), (2, 4), (5, 6)]).pairs(), [(1, 10)])

    def test_touching_spans_are_joined(self):
        self.assertEqual(SpanSet([(1, 3), (3, 5)]).pairs(), [(1, 5)])

    def test_empty_spans_are_dropped(self):
        self.assertEqual(SpanSet([(4, 4), (1, 2)]).pairs(), [(1, 2)])

    def test_reversed_spans_are_refused(self):
        with self.assertRaisesRegex(ValueError, "3-1"):
            SpanSet([(3, 1)])

    def test_equality_and_hash(self):
        left, right = SpanSet([(1, 3), (3, 5)]), SpanSet([(1, 5)])
        self.assertIs(left.__eq__(right), True)
        self.assertIs(left.__eq__(SpanSet([(1, 4)])), False)
        self.assertEqual(hash(left), hash(right))

    def test_repr(self):
        self.assertEqual(repr(SpanSet([(1, 2)])), "SpanSet([(1, 2)])")


class AskingTest(unittest.TestCase):
    def setUp(self):
        self.spans = SpanSet([(1, 3), (5, 8), (10, 20)])

    def test_measure(self):
        self.assertEqual(self.spans.measure(), 15)
        self.assertEqual(SpanSet().measure(), 0)

    def test_bounds(self):
        self.assertEqual(self.spans.bounds(), (1, 20))
        self.assertIsNone(SpanSet().bounds())

    def test_holds(self):
        held = [number for number in range(22) if self.spans.holds(number)]
        self.assertEqual(held, [1, 2, 5, 6, 7, *range(10, 20)])

    def test_holds_fractions(self):
        self.assertIs(self.spans.holds(2.5), True)
        self.assertIs(self.spans.holds(4.5), False)

    def test_covers(self):
        asked = [(1, 3), (5, 7), (6, 8), (2, 6), (0, 2), (12, 25), (30, 31)]
        self.assertEqual([self.spans.covers(*pair) for pair in asked], [True, True, True, False, False, False, False])

    def test_an_empty_span_is_covered(self):
        self.assertIs(SpanSet().covers(4, 4), True)


class AlgebraTest(unittest.TestCase):
    def setUp(self):
        self.left = SpanSet([(0, 10), (20, 30)])
        self.right = SpanSet([(5, 22), (25, 26), (28, 40)])

    def test_union(self):
        self.assertEqual(self.left.union(self.right).pairs(), [(0, 40)])
        self.assertEqual(self.left.union().pairs(), [(0, 10), (20, 30)])

    def test_union_of_several(self):
        self.assertEqual(SpanSet([(1, 2)]).union(SpanSet([(4, 5)]), SpanSet([(2, 3)])).pairs(), [(1, 3), (4, 5)])

    def test_intersect(self):
        expected = [(5, 10), (20, 22), (25, 26), (28, 30)]
        self.assertEqual(self.left.intersect(self.right).pairs(), expected)
        self.assertEqual(self.right.intersect(self.left).pairs(), expected)

    def test_intersection_of_neighbours_is_empty(self):
        self.assertEqual(SpanSet([(1, 3)]).intersect(SpanSet([(3, 5)])).pairs(), [])

    def test_complement(self):
        self.assertEqual(self.left.complement(-5, 35).pairs(), [(-5, 0), (10, 20), (30, 35)])

    def test_complement_inside_a_span(self):
        self.assertEqual(self.left.complement(2, 8).pairs(), [])
        self.assertEqual(self.left.complement(2, 15).pairs(), [(10, 15)])

    def test_complement_ends_before_a_span(self):
        self.assertEqual(SpanSet([(10, 20)]).complement(0, 5).pairs(), [(0, 5)])

    def test_subtract(self):
        self.assertEqual(self.left.subtract(self.right).pairs(), [(0, 5), (22, 25), (26, 28)])

    def test_subtract_from_nothing(self):
        self.assertEqual(SpanSet().subtract(self.left).pairs(), [])

    def test_shift(self):
        self.assertEqual(self.left.shift(-3).pairs(), [(-3, 7), (17, 27)])

    def test_grow(self):
        self.assertEqual(self.left.grow(1).pairs(), [(-1, 11), (19, 31)])
        self.assertEqual(self.left.grow(0, 12).pairs(), [(0, 42)])

    def test_grow_one_end(self):
        self.assertEqual(self.left.grow(3, 0).pairs(), [(-3, 10), (17, 30)])

    def test_shrink(self):
        self.assertEqual(SpanSet([(0, 10), (12, 14)]).grow(-2).pairs(), [(2, 8)])
