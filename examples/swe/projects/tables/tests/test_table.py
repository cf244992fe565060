import unittest

from tables import Table, align, shorten

HEAD = ["name", "price"]
ROWS = [["bolt", "2.5"], ["Nut", "12"], ["axle", "-1,000"], ["cap", ""]]


class BuildingTest(unittest.TestCase):
    def test_from_rows(self):
        table = Table.from_rows([HEAD, *ROWS])
        self.assertEqual((table.head, table.rows), (HEAD, ROWS))

    def test_short_rows_are_filled(self):
        self.assertEqual(Table(["a", "b", "c"], [["1"], []]).rows, [["1", "", ""], ["", "", ""]])

    def test_long_rows_are_refused(self):
        with self.assertRaisesRegex(ValueError, "3 cells"):
            Table(["a", "b"], [["1", "2", "3"]])

    def test_column_names_differ(self):
        with self.assertRaisesRegex(ValueError, "must differ"):
            Table(["a", "a"])

    def test_no_head(self):
        with self.assertRaises(ValueError):
            Table.from_rows([])

    def test_what_is_given_out_is_a_copy(self):
        table = Table(HEAD, ROWS)
        first = table.rows
        first[0][0] = "changed"
        self.assertEqual(table.rows, ROWS)


class AskingTest(unittest.TestCase):
    def setUp(self):
        self.table = Table(HEAD, ROWS)

    def test_column(self):
        self.assertEqual(self.table.column("name"), ["bolt", "Nut", "axle", "cap"])
        with self.assertRaises(KeyError):
            self.table.column("weight")

    def test_select(self):
        self.assertEqual(self.table.select("price", "name").rows[0], ["2.5", "bolt"])
        self.assertEqual(self.table.select("price").head, ["price"])

    def test_where(self):
        self.assertEqual(self.table.where("name", lambda cell: "a" in cell).column("name"), ["axle", "cap"])

    def test_total(self):
        self.assertEqual(self.table.total("price"), -985.5)
        with self.assertRaisesRegex(ValueError, "no numbers"):
            self.table.total("name")

    def test_numeric(self):
        self.assertIs(self.table.is_numeric("price"), True)
        self.assertIs(self.table.is_numeric("name"), False)
        self.assertIs(
            Table(
                ["a"],
                [
                    [
                        "",
                    ],
                    [" "],
                ],
            ).is_numeric("a"),
            False,
        )
        cells = ["1.", ".5", "1.2.3", "--1", "1e3", "x"]
        self.assertEqual([Table(["a"], [[cell]]).is_numeric("a") for cell in cells], [False] * 6)


class SortingTest(unittest.TestCase):
    def sorted(self, name, **options):
        return Table(HEAD, ROWS).sorted_by(name, **options).column("name")

    def test_numbers(self):
        self.assertEqual(self.sorted("price"), ["axle", "bolt", "Nut", "cap"])

    def test_numbers_reversed(self):
        self.assertEqual(self.sorted("price", reverse=True), ["Nut", "bolt", "axle", "cap"])

    def test_words_without_regard_to_case(self):
        self.assertEqual(self.sorted("name"), ["axle", "bolt", "cap", "Nut"])

    def test_equal_rows_keep_their_order(self):
        table = Table(["k", "n"], [["b", "1"], ["a", "2"], ["b", "3"], ["a", "4"]])
        self.assertEqual(table.sorted_by("k").column("n"), ["2", "4", "1", "3"])
        self.assertEqual(table.sorted_by("k", reverse=True).column("n"), ["1", "3", "2", "4"])


class TextTest(unittest.TestCase):
    def test_text(self):
        self.assertEqual(
            Table(HEAD, ROWS).text().splitlines(),
            [
                "name |  price",
                "-----+-------",
                "bolt |    2.5",
                "Nut  |     12",
                "axle | -1,000",
                "cap  |",
            ],
        )

    def test_long_cells_are_shortened(self):
        lines = Table(["a", "b"], [["abcdefgh", "x"]]).text(max_width=5).splitlines()
        self.assertEqual(lines, ["a     | b", "------+--", "abcd… | x"])

    def test_wide_characters(self):
        lines = Table(["a", "b"], [["日本", "x"], ["e\u0301", "y"]]).text().splitlines()
        self.assertEqual(lines[2:], ["日本 | x", "e\u0301    | y"])

    def test_head_only(self):
        self.assertEqual(Table(HEAD).text(), "name | price\n-----+------")


class LayoutTest(unittest.TestCase):
    def test_align(self):
        self.assertEqual([align("ab", 5, side) for side in ("left", "right", "center")], ["ab   ", "   ab", " ab  "])
        self.assertEqual(align("abcdef", 3, "right"), "abcdef")
        with self.assertRaisesRegex(ValueError, "middle"):
            align("ab", 5, "middle")

    def test_shorten(self):
        self.assertEqual(shorten("abcdef", 6), "abcdef")
        self.assertEqual(shorten("abcdef", 4), "abc…")
        self.assertEqual(shorten("ab cdef", 4), "ab…")
        self.assertEqual(shorten("abc", 1), "…")
        self.assertEqual(shorten("abc", 0), "")

    def test_shorten_wide(self):
        self.assertEqual(shorten("日本語", 5), "日本…")
        self.assertEqual(shorten("日本語", 4), "日…")
