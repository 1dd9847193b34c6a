"""A page in the terminal: titles, facts, tables and bars in plain ASCII, as wide as the console and no wider.

Every string may come out of a stranger's file: control characters are escaped here, and nowhere else.
"""

import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from planner.console import printable

NOT_MEASURED = "not measured"
UNKNOWN = "-"  # the same, in a table

Cell = str | Text

_FREE = "."
_GROUP = 10  # marks of a map that stand together
_INDENT = "  "  # of all but titles and headings
_LEAST_BESIDE = 16  # columns: where a fact has fewer beside its name, it goes below it


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A share of a bar: the mark it is drawn with, its name, how much it is, and its colour on a terminal."""

    mark: str
    name: str
    amount: float
    style: str = ""


class Page:
    """Prints to a console, within its width."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @property
    def width(self) -> int:
        """Columns of what stands below a heading."""
        return self._console.width - len(_INDENT)

    def title(self, text: str) -> None:
        """The first line of a page."""
        self._wrapped(text, style="bold")

    def heading(self, text: str) -> None:
        """An empty line and the name of what follows."""
        self._print(Text())
        self._wrapped(text, style="bold")

    def facts(self, facts: Iterable[tuple[str, str]]) -> None:
        """Names and what is to be said of each, in two columns; below each other where the console is narrow."""
        pairs = [(printable(name), printable(text)) for name, text in facts]
        margin = max((len(name) for name, _ in pairs), default=0) + 2
        is_narrow = self.width - margin < _LEAST_BESIDE
        for name, text in pairs:
            if is_narrow:
                self._print(Text(f"{_INDENT}{name}", style="dim"))
            indent = len(_INDENT) if is_narrow else margin
            for index, line in enumerate(textwrap.wrap(text, max(1, self.width - indent)) or [""]):
                beside = f"{name:<{margin}}" if index == 0 and not is_narrow else " " * indent
                self._print(Text.assemble(_INDENT, (beside, "dim"), line))

    def lines(self, lines: Iterable[str], *, style: str = "") -> None:
        """Paragraphs, indented; a paragraph goes on further in."""
        for line in lines:
            self._wrapped(line, style=style, indent=_INDENT)

    def items(self, items: Iterable[str]) -> None:
        """Short texts beside each other, none of them broken."""
        line = ""
        for item in map(printable, items):
            if line and len(line) + 2 + len(item) > self.width:
                self._print(Text(_INDENT + line))
                line = ""
            line += f"{'  ' if line else ''}{item}"
        self._print(Text(_INDENT + line))

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
        """Rows of cells, the first to the left, the others to the right; beyond the width cells are wrapped."""
        self.renderable_table(plain_table(columns, rows))

    def renderable_table(self, table: Table) -> None:
        """A table that was made elsewhere."""
        options = self._console.options.update(width=self.width)
        for segments in self._console.render_lines(table, options, pad=False):
            line = Text.assemble(_INDENT, *((segment.text, segment.style or "") for segment in segments))
            line.rstrip()
            self._print(line)

    def table_in_blocks(self, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """A table of many columns: those that do not fit go below, with the first again, in rows that say more."""
        cells = [columns, *rows]
        widths = [
            max(len(line) for row in cells for line in str(row[place]).split("\n")) for place in range(len(columns))
        ]
        blocks: list[list[int]] = [[]]
        left = self.width - widths[0]
        for place in range(1, len(columns)):
            if blocks[-1] and left < widths[place] + 2:
                blocks.append([])
                left = self.width - widths[0]
            blocks[-1].append(place)
            left -= widths[place] + 2
        for block in blocks:
            if block is not blocks[0]:
                self._print(Text())
            said = [row for row in rows if any(str(row[place]) not in ("", UNKNOWN) for place in block)]
            places = (0, *block)
            self.table([columns[at] for at in places], [[row[at] for at in places] for row in said])

    def bar(self, parts: Sequence[Part], whole: float, *, label: str = "") -> None:
        """The parts of a whole as one bar; what they leave of it is dotted."""
        drawn = bar(parts, whole, self.width - len(label))
        self._print(Text.assemble(_INDENT, (printable(label), "dim"), drawn))

    def marks(self, marks: Sequence[tuple[str, str]]) -> None:
        """One mark and its style each, in groups of ten that are numbered at each line's start."""
        margin = len(str(len(marks))) + 2
        num_groups = -(-len(marks) // _GROUP)
        most_per_line = max(1, (self.width - margin + 1) // (_GROUP + 1))
        num_lines = max(1, -(-num_groups // most_per_line))
        per_line = max(1, -(-num_groups // num_lines)) * _GROUP  # lines of equal length
        for start in range(0, len(marks), per_line):
            line = Text(f"{_INDENT}{start:>{margin - 2}}  ", style="dim")
            for place, (mark, style) in enumerate(marks[start : start + per_line]):
                line.append(" " if place and place % _GROUP == 0 else "")
                line.append(mark, style=f"not dim {style}")
            self._print(line)

    def _wrapped(self, text: str, *, style: str, indent: str = "") -> None:
        for line in textwrap.wrap(
            printable(text), self.width, initial_indent=indent, subsequent_indent=f"{indent}  " if indent else ""
        ):
            self._print(Text(line, style=style))

    def _print(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)


def or_not_measured(value: float | None, shown: Callable[[float], str]) -> str:
    """The value as it is shown, or that nobody measured it."""
    return NOT_MEASURED if value is None else shown(value)


def plain_table(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Table:
    """A table without lines; all columns are to the right but the first and those without a name."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for place, name in enumerate(columns):
        table.add_column(_cell(name), justify="right" if place and name else "left", vertical="bottom", overflow="fold")
    for row in rows:
        table.add_row(*map(_cell, row))
    return table


def bar(parts: Sequence[Part], whole: float, width: int) -> Text:
    """The bar alone: ends of parts are rounded to columns, so that their lengths add up."""
    whole = max(whole, sum(part.amount for part in parts))
    line, end, amount = Text(), 0, 0.0
    for part in parts:
        amount += part.amount
        stop = round(amount / whole * width) if whole > 0 else 0
        line.append(part.mark * (stop - end), style=part.style)
        end = stop
    return line.append(_FREE * (width - end), style="dim")


def _cell(text: Cell) -> Text:
    """A text that carries a style is ours, and needs no escaping."""
    if isinstance(text, Text):
        return text
    return Text("\n".join(printable(line) for line in text.split("\n")))
