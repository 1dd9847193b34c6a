"""A terminal small enough to read: what a VT100 makes of the few sequences that the runtime sends it."""

import re
import unicodedata

_SEQUENCE = re.compile(r"\x1b(?:\[([\d;]*)([A-Za-z])|([78D]))")
_TAB_COLUMNS = 8


class Terminal:
    """A screen with scrollback. A full row keeps its cursor at the last column until the next character."""

    def __init__(self, num_columns: int, num_rows: int) -> None:
        self.num_columns = num_columns
        self.num_rows = num_rows
        self.rows = [[" "] * num_columns for _ in range(num_rows)]
        self.scrolled: list[list[str]] = []
        self.row = self.column = 0
        self.is_full = False  # the cursor waits at the end of its row
        self._saved = (0, 0, False)

    def feed(self, data: str) -> None:
        """Take what a program wrote, after the line discipline."""
        place = 0
        while place < len(data):
            if data[place] == "\x1b":
                match = _SEQUENCE.match(data, place)
                assert match is not None, f"an unknown sequence: {data[place : place + 6]!r}"
                self._obey(match[1], match[2] or match[3])
                place = match.end()
                continue
            self._put(data[place])
            place += 1

    def lines(self) -> list[str]:
        """All rows, those scrolled away first, without blanks at their ends and empty rows at the end."""
        lines = ["".join(row).rstrip() for row in (*self.scrolled, *self.rows)]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def _put(self, char: str) -> None:
        if char == "\r":
            self.column, self.is_full = 0, False
        elif char == "\n":
            self.is_full = False
            self._down()
        elif char == "\t":
            self.column = min(self.column - self.column % _TAB_COLUMNS + _TAB_COLUMNS, self.num_columns - 1)
        else:
            self._print(char, 2 if unicodedata.east_asian_width(char) in "WF" else 1)

    def _print(self, char: str, width: int) -> None:
        if self.is_full or self.column + width > self.num_columns:
            self.column, self.is_full = 0, False
            self._down()
        self.rows[self.row][self.column : self.column + width] = [char, ""][:width]
        self.column += width
        if self.column == self.num_columns:
            self.column, self.is_full = self.num_columns - 1, True

    def _down(self) -> None:
        if self.row + 1 < self.num_rows:
            self.row += 1
        else:
            self.scrolled.append(self.rows.pop(0))
            self.rows.append([" "] * self.num_columns)

    def _obey(self, number: str | None, letter: str) -> None:
        match letter:
            case "7":
                self._saved = (self.row, self.column, self.is_full)
            case "8":
                self.row, self.column, _ = self._saved
                self.is_full = False  # some terminals forget it: the worst case
            case "D":
                self.is_full = False
                self._down()
            case "A":
                self.row, self.is_full = max(0, self.row - int(number or 1)), False
            case "J":
                assert not number
                self.rows[self.row][self.column :] = [" "] * (self.num_columns - self.column)
                for row in range(self.row + 1, self.num_rows):
                    self.rows[row] = [" "] * self.num_columns
            case "m":
                pass  # a colour
            case _:
                raise AssertionError(f"an unknown letter {letter}")
