import unittest

from tables import CsvError, read_csv, write_csv


class ReadTest(unittest.TestCase):
    def test_rows(self):
        self.assertEqual(read_csv("a,b\n1,2\n"), [["a", "b"], ["1", "2"]])

    def test_no_line_end_at_the_end(self):
        self.assertEqual(read_csv("a,b\n1,2"), [["a", "b"], ["1", "2"]])

    def test_empty_text(self):
        self.assertEqual(read_csv(""), [])

    def test_empty_cells(self):
        self.assertEqual(read_csv(",a,\n,,\n"), [["", "a", ""], ["", "", ""]])

    def test_empty_lines_are_skipped(self):
        self.assertEqual(read_csv("a\n\nb\n"), [["a"], ["b"]])

    def test_windows_line_ends(self):
        self.assertEqual(read_csv('a,b\r\n"c\r\nd",e\r\n'), [["a", "b"], ["c\nd", "e"]])

    def test_quoted_cells(self):
        self.assertEqual(read_csv('"a,b",c\n"d\ne",""\n'), [["a,b", "c"], ["d\ne", ""]])

    def test_quotes_written_twice(self):
        self.assertEqual(read_csv('"say ""hi""",""""\n'), [['say "hi"', '"']])

    def test_space_counts(self):
        self.assertEqual(read_csv(" a , b\n"), [[" a ", " b"]])

    def test_another_delimiter(self):
        self.assertEqual(read_csv('a;"b;c"\n1,5;2\n', ";"), [["a", "b;c"], ["1,5", "2"]])

    def test_unfinished_quote(self):
        with self.assertRaises(CsvError) as caught:
            read_csv('a\nb,"c\nd')
        self.assertEqual(caught.exception.line, 2)

    def test_text_after_a_quote(self):
        with self.assertRaisesRegex(CsvError, "line 3"):
            read_csv('"a\nb",c\n"d"e\n')

    def test_a_quote_inside(self):
        with self.assertRaisesRegex(CsvError, "line 1: a quote inside"):
            read_csv('5" pipe\n')


class WriteTest(unittest.TestCase):
    def test_plain(self):
        self.assertEqual(write_csv([["a", "b"], ["", " c "]]), "a,b\n, c \n")

    def test_special_cells(self):
        self.assertEqual(write_csv([["a,b", 'say "hi"', "c\nd"]]), '"a,b","say ""hi""","c\nd"\n')

    def test_another_delimiter(self):
        self.assertEqual(write_csv([["a;b", "1,5"]], ";"), '"a;b";1,5\n')

    def test_round_trip(self):
        rows = [["x", '"', ""], [",", "\n", 'a""b'], ["", "", "é"]]
        self.assertEqual(read_csv(write_csv(rows)), rows)
