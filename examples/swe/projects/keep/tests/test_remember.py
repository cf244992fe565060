import unittest

from keep import Cache, make_key, remember


class KeyTest(unittest.TestCase):
    def test_named_arguments_in_any_order(self):
        self.assertEqual(make_key([1], {"a": 2, "b": 3}), make_key([1], {"b": 3, "a": 2}))

    def test_different_calls(self):
        calls = [
            ([1, 2], {}),
            ([2, 1], {}),
            ([[1, 2]], {}),
            ([(1, 2)], {}),
            ([{1, 2}], {}),
            ([{1: 2}], {}),
            ([1], {"a": 2}),
            ([], {"a": 1}),
            ([], {}),
        ]
        self.assertEqual(len({make_key(*call) for call in calls}), len(calls))

    def test_types(self):
        self.assertEqual(make_key([1], {}), make_key([1.0], {}))
        keys = {make_key([value], {}, typed=True) for value in (1, 1.0, True)}
        self.assertEqual(len(keys), 3)

    def test_types_inside(self):
        self.assertNotEqual(make_key([[1]], {}, typed=True), make_key([[1.0]], {}, typed=True))
        self.assertNotEqual(make_key([], {"a": {1: 2}}, typed=True), make_key([], {"a": {1: 2.0}}, typed=True))

    def test_what_cannot_be_a_key(self):
        with self.assertRaises(TypeError):
            make_key([bytearray(b"x")], {})


class RememberTest(unittest.TestCase):
    def setUp(self):
        self.calls = []

    def double(self, *args, **kwargs):
        self.calls.append((args, kwargs))
        return args[0] * 2

    def test_computes_once(self):
        double = remember()(self.double)
        self.assertEqual([double(3), double(3), double(4)], [6, 6, 8])
        self.assertEqual(len(self.calls), 2)

    def test_lists_are_arguments(self):
        double = remember()(self.double)
        self.assertEqual([double([1]), double([1])], [[1, 1], [1, 1]])
        self.assertEqual(len(self.calls), 1)

    def test_none_is_remembered(self):
        def nothing(number):
            self.calls.append(number)

        nothing = remember()(nothing)
        self.assertEqual([nothing(1), nothing(1)], [None, None])
        self.assertEqual(self.calls, [1])

    def test_types(self):
        double = remember(typed=True)(self.double)
        self.assertEqual([repr(double(1)), repr(double(1.0)), repr(double(True))], ["2", "2.0", "2"])
        self.assertEqual(len(self.calls), 3)

    def test_unless(self):
        double = remember(unless=lambda result: result > 10)(self.double)
        self.assertEqual([double(2), double(2), double(7), double(7)], [4, 4, 14, 14])
        self.assertEqual(len(self.calls), 3)

    def test_exceptions_are_not_kept(self):
        def fail(number):
            self.calls.append(number)
            raise KeyError(number)

        fail = remember()(fail)
        for _ in range(2):
            with self.assertRaises(KeyError):
                fail(1)
        self.assertEqual(self.calls, [1, 1])

    def test_forget(self):
        double = remember()(self.double)
        double(3, side="left")
        self.assertEqual([double.forget(3), double.forget(3, side="left")], [False, True])
        double(3, side="left")
        self.assertEqual(len(self.calls), 2)

    def test_a_shared_cache(self):
        cache = Cache(capacity=1)
        double = remember(cache)(self.double)
        for number in (1, 2, 1):
            double(number)
        self.assertEqual((len(self.calls), len(cache)), (3, 1))

    def test_an_empty_cache_is_used(self):
        cache = Cache()
        remember(cache)(self.double)(1)
        self.assertEqual(len(cache), 1)

    def test_the_name_stays(self):
        def area(width):
            return width * width

        self.assertEqual(remember()(area).__name__, "area")
