import unittest

from sums import SumError, parse, show


class ShowTest(unittest.TestCase):
    def shown(self, text):
        return show(parse(text))

    def test_needless_parentheses_go(self):
        self.assertEqual(self.shown("((1) + (2 * 3)) - 4"), "1 + 2 * 3 - 4")

    def test_needed_parentheses_stay(self):
        for text in ("(1 + 2) * 3", "1 - (2 - 3)", "8 / (4 * 2)", "(2 ^ 3) ^ 2", "2 ^ (3 + 1)", "-(1 + 2)"):
            self.assertEqual(self.shown(text), text)

    def test_signs(self):
        self.assertEqual(self.shown("- x ^ 2"), "-x ^ 2")
        self.assertEqual(self.shown("(-x) ^ 2"), "(-x) ^ 2")

    def test_powers(self):
        self.assertEqual(self.shown("2 ^ (3 ^ 2)"), "2 ^ 3 ^ 2")

    def test_calls(self):
        self.assertEqual(self.shown("max( a,(b) , 1+2)"), "max(a, b, 1 + 2)")
        self.assertEqual(self.shown("f()"), "f()")


class ErrorsTest(unittest.TestCase):
    def check(self, text, message, position):
        with self.assertRaisesRegex(SumError, message) as caught:
            parse(text)
        self.assertEqual(caught.exception.position, position)

    def test_empty(self):
        self.check("", "found the end", 0)
        self.check("  ", "found the end", 2)

    def test_unknown_characters(self):
        self.check("1 + $", "unexpected character", 4)

    def test_missing_operand(self):
        self.check("1 +", "expected a number, found the end", 3)
        self.check("2 * * 3", "expected a number", 4)

    def test_missing_parenthesis(self):
        self.check("(1 + 2", "expected '\\)', found the end", 6)
        self.check("max(1, 2", "expected '\\)'", 8)

    def test_too_many_parentheses(self):
        self.check("(1)) + 2", "expected the end, found '\\)'", 3)

    def test_two_operands(self):
        self.check("1 2", "expected the end, found '2'", 2)
        self.check("2 x", "expected the end, found 'x'", 2)

    def test_message_names_the_position(self):
        self.check("4 4", "at 2", 2)

    def test_nesting(self):
        self.check("(" * 101 + "1" + ")" * 101, "nested too deeply", 100)

    def test_long_sums_are_not_nested(self):
        self.assertEqual(len(show(parse(" + ".join(["1"] * 300)))), 4 * 299 + 1)
