import unittest

from spans import SpanSet, SpanSyntaxError, parse, render


class ParseTest(unittest.TestCase):
    def test_numbers_and_ranges(self):
        self.assertEqual(parse("1-3, 7, 9-12").pairs(), [(1, 4), (7, 8), (9, 13)])

    def test_empty_text(self):
        self.assertEqual(parse("").pairs(), [])
        self.assertEqual(parse("  ").pairs(), [])

    def test_any_order_and_space(self):
        self.assertEqual(parse(" 9 - 12 ,1-  3,4").pairs(), [(1, 5), (9, 13)])

    def test_negative_numbers(self):
        self.assertEqual(parse("-3--1, -7").pairs(), [(-7, -6), (-3, 0)])
        self.assertEqual(parse("-2-2").pairs(), [(-2, 3)])

    def test_bad_parts(self):
        for text, part in (("1, x", "x"), ("1,,2", ""), ("5-3", "5-3"), ("1-2-3", "1-2-3")):
            with self.assertRaises(SpanSyntaxError) as caught:
                parse(text)
            self.assertEqual(caught.exception.part, part)

    def test_the_error_is_a_value_error(self):
        with self.assertRaisesRegex(ValueError, "'1.5'"):
            parse("1.5")


class RenderTest(unittest.TestCase):
    def test_render(self):
        self.assertEqual(render(SpanSet([(1, 4), (7, 8), (9, 13)])), "1-3, 7, 9-12")

    def test_two_pages(self):
        self.assertEqual(render(SpanSet([(4, 6)])), "4-5")

    def test_round_trip(self):
        for text in ("", "5", "1-2", "-3--1, 4", "0-9, 11, 13-14"):
            self.assertEqual(render(parse(text)), text)
