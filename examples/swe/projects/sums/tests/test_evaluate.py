import unittest

from sums import SumError, evaluate, names


class NumbersTest(unittest.TestCase):
    def test_literals(self):
        self.assertEqual(
            [evaluate(text) for text in ("7", "007", "1.5", ".5", "2.", "1e3", "25E-1")],
            [7, 7, 1.5, 0.5, 2.0, 1000.0, 2.5],
        )

    def test_whole_numbers_stay_whole(self):
        self.assertIsInstance(evaluate("7"), int)
        self.assertIsInstance(evaluate("2 * 3 - 1"), int)
        self.assertIsInstance(evaluate("1e3"), float)

    def test_space_is_ignored(self):
        self.assertEqual(evaluate(" 1\t+\n2 "), 3)


class OperatorsTest(unittest.TestCase):
    def test_left_to_right(self):
        self.assertEqual(evaluate("10 - 3 - 2"), 5)
        self.assertEqual(evaluate("24 / 4 / 2"), 3.0)

    def test_products_before_sums(self):
        self.assertEqual(evaluate("1 + 2 * 3"), 7)
        self.assertEqual(evaluate("2 * 3 + 1"), 7)

    def test_parentheses(self):
        self.assertEqual(evaluate("(1 + 2) * (3 + 4)"), 21)

    def test_division(self):
        self.assertEqual([evaluate(text) for text in ("7 / 2", "7 // 2", "7 % 4", "-7 // 2")], [3.5, 3, 3, -4])

    def test_powers_group_to_the_right(self):
        self.assertEqual(evaluate("2 ^ 3 ^ 2"), 512)

    def test_a_sign_is_looser_than_a_power(self):
        self.assertEqual(evaluate("-2 ^ 2"), -4)
        self.assertEqual(evaluate("2 ^ -1"), 0.5)

    def test_a_sign_is_tighter_than_a_product(self):
        self.assertEqual(evaluate("-7 // 2 * 2"), -8)
        self.assertEqual(evaluate("3 - -2"), 5)
        self.assertEqual(evaluate("--5"), 5)


class NamesTest(unittest.TestCase):
    def test_values(self):
        self.assertEqual(evaluate("2 * (width + 1)", {"width": 3}), 8)
        self.assertEqual(evaluate("a_1 - B", {"a_1": 2, "B": 5}), -3)

    def test_zero_is_a_value(self):
        self.assertEqual(evaluate("x + 1", {"x": 0}), 1)

    def test_missing_value(self):
        with self.assertRaisesRegex(SumError, "no value for y") as caught:
            evaluate("x + y", {"x": 1})
        self.assertEqual(caught.exception.position, 4)

    def test_names(self):
        self.assertEqual(names("b * max(a, -b, c ^ d) + 3"), ["b", "a", "c", "d"])
        self.assertEqual(names("1 + 2"), [])


class FunctionsTest(unittest.TestCase):
    def test_functions(self):
        self.assertEqual(evaluate("max(1, 5, 3) - min(4, 2)"), 3)
        self.assertEqual(evaluate("abs(-3) + sqrt(16)"), 7.0)
        self.assertEqual(evaluate("round(2.567, 1)"), 2.6)
        self.assertEqual(evaluate("round(2.4)"), 2)

    def test_one_argument_is_enough_for_max(self):
        with self.assertRaises(SumError):
            evaluate("max()")

    def test_unknown_function(self):
        with self.assertRaisesRegex(SumError, "no function cot"):
            evaluate("1 + cot(2)")

    def test_wrong_number_of_arguments(self):
        with self.assertRaisesRegex(SumError, "abs does not take 2 arguments"):
            evaluate("abs(1, 2)")

    def test_functions_fail_with_a_position(self):
        with self.assertRaises(SumError) as caught:
            evaluate("1 + sqrt(-4)")
        self.assertEqual(caught.exception.position, 4)


class LimitsTest(unittest.TestCase):
    def test_division_by_zero(self):
        for text, position in (("1 / 0", 2), ("5 % (3 - 3)", 2), ("8 // 0", 2), ("0 ^ -1", 2)):
            with self.assertRaisesRegex(SumError, "division by zero") as caught:
                evaluate(text)
            self.assertEqual(caught.exception.position, position)

    def test_large_powers_are_refused(self):
        for text in ("9 ^ 9 ^ 9", "2.5 ^ 10000", "10 ^ 2000"):
            with self.assertRaisesRegex(SumError, "too large"):
                evaluate(text)

    def test_roots_of_negative_numbers(self):
        with self.assertRaisesRegex(SumError, "no such power"):
            evaluate("(-8) ^ 0.5")
        self.assertEqual(evaluate("(-8) ^ 2.0"), 64.0)
