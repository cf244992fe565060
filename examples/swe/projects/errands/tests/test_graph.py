import unittest

from errands import CycleError, Graph


class GraphTest(unittest.TestCase):
    def test_nodes_keep_their_order(self):
        self.assertEqual(Graph([("b", "a"), ("c", "b")]).nodes(), ["b", "a", "c"])

    def test_neighbours(self):
        graph = Graph([("a", "b"), ("a", "c"), ("b", "c")])
        self.assertEqual(graph.after("a"), ["b", "c"])
        self.assertEqual(graph.before("c"), ["a", "b"])

    def test_an_edge_counts_once(self):
        graph = Graph([("a", "b"), ("a", "b")])
        self.assertEqual((graph.after("a"), graph.before("b")), (["b"], ["a"]))
        self.assertEqual(graph.order(), ["a", "b"])

    def test_neighbours_are_copies(self):
        graph = Graph([("a", "b")])
        graph.after("a").append("x")
        self.assertEqual(graph.after("a"), ["b"])

    def test_reachable(self):
        graph = Graph([("a", "b"), ("b", "c"), ("a", "d"), ("e", "d")])
        self.assertEqual(graph.reachable("a"), {"b", "c", "d"})
        self.assertEqual(graph.reachable("c"), set())

    def test_reachable_on_a_cycle(self):
        graph = Graph([("a", "b"), ("b", "a"), ("b", "c")])
        self.assertEqual(graph.reachable("a"), {"a", "b", "c"})


class OrderTest(unittest.TestCase):
    def test_chain(self):
        self.assertEqual(Graph([("b", "c"), ("a", "b")]).order(), ["a", "b", "c"])

    def test_first_added_first(self):
        graph = Graph()
        for name in "dbca":
            graph.add_node(name)
        self.assertEqual(graph.order(), ["d", "b", "c", "a"])
        graph.add_edge("a", "b")
        self.assertEqual(graph.order(), ["d", "c", "a", "b"])

    def test_what_becomes_free_does_not_queue_up(self):
        graph = Graph([("a", "b")])
        graph.add_node("c")
        self.assertEqual(graph.order(), ["a", "b", "c"])

    def test_diamond(self):
        self.assertEqual(Graph([("a", "c"), ("a", "b"), ("b", "d"), ("c", "d")]).order(), ["a", "c", "b", "d"])

    def test_cycle(self):
        with self.assertRaises(CycleError) as caught:
            Graph([("x", "a"), ("a", "b"), ("b", "c"), ("c", "a"), ("c", "y")]).order()
        cycle = list(caught.exception.cycle)
        self.assertEqual(cycle[0], cycle[-1])
        self.assertIn(cycle[:-1], [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]])

    def test_cycle_of_one(self):
        with self.assertRaisesRegex(CycleError, "a -> a"):
            Graph([("a", "a")]).order()

    def test_a_cycle_is_a_value_error(self):
        with self.assertRaises(ValueError):
            Graph([("a", "b"), ("b", "a")]).order()
