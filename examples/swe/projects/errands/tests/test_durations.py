import unittest

from errands import parse_duration, show_duration


class ParseTest(unittest.TestCase):
    def test_units(self):
        self.assertEqual([parse_duration(text) for text in ("45m", "2h", "1d")], [45, 120, 1440])

    def test_several_units(self):
        self.assertEqual(parse_duration("1d 2h 3m"), 1563)
        self.assertEqual(parse_duration(" 1H30M "), 90)

    def test_minutes_need_no_unit(self):
        self.assertEqual((parse_duration("45"), parse_duration("1h 30"), parse_duration("0")), (45, 90, 0))

    def test_more_than_an_hour_of_minutes(self):
        self.assertEqual(parse_duration("90m"), 90)

    def test_no_durations(self):
        for text in ("", "h", "1x", "30m 1h", "1h 2h", "1.5h", "-5m", "1h 30m 5"):
            with self.assertRaises(ValueError):
                parse_duration(text)


class ShowTest(unittest.TestCase):
    def test_show(self):
        self.assertEqual(
            [show_duration(minutes) for minutes in (0, 5, 60, 90, 1440, 1563)],
            ["0m", "5m", "1h", "1h 30m", "1d", "1d 2h 3m"],
        )

    def test_units_in_between_are_left_out(self):
        self.assertEqual(show_duration(1445), "1d 5m")

    def test_round_trip(self):
        for minutes in (0, 59, 61, 1439, 3000, 100000):
            self.assertEqual(parse_duration(show_duration(minutes)), minutes)

    def test_negative(self):
        with self.assertRaises(ValueError):
            show_duration(-1)
