"""The live line of a run on stderr: a thread looks at the run ten times a second, and draws what it sees.

Where the text goes to the same terminal, the line is kept below it: cleared before text that would run into it, drawn
again after. The text's own cursor never moves; nothing of the terminal is changed that would have to be restored.
"""

import contextlib
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Self, TextIO

from rich.cells import cell_len

from runtime.progress import Progress
from runtime.status_text import StatusText

_INTERVAL_S = 0.1
_MOST_ENDING_S = 0.5  # to wait for a terminal that takes no more output
_TAB_COLUMNS = 8

_SAVE, _RESTORE = "\x1b7", "\x1b8"
_CLEAR_BELOW = "\x1b[J"  # from the cursor on
_TO_NEXT_LINE = f"\x1bD\x1b[A{_SAVE}\r\n"  # first make sure that there is one; the column stays


class StatusLine:
    """Draws until it is left. Text to stdout goes through `write` meanwhile."""

    def __init__(
        self,
        sample: Callable[[], Progress],
        terminal: TextIO,
        text: TextIO,
        *,
        num_columns: Callable[[], int],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`num_columns` is asked at each look, as terminals are resized."""
        self._sample = sample
        self._terminal = terminal
        self._text = text
        self._num_columns = num_columns
        self._clock = clock
        self._status = StatusText(clock())
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._line = ""
        self._is_drawn = False
        self._is_text_here = text.isatty()
        self._width = num_columns()
        self._column = 0  # of the text; the width where it is full, and the cursor waits at its end
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Wipe the line, whatever ended the run."""
        self._ended.set()
        self._thread.join(_MOST_ENDING_S)
        if self._lock.acquire(timeout=_MOST_ENDING_S):
            with contextlib.suppress(OSError):  # the terminal has gone
                self._clear()
            self._lock.release()

    def write(self, text: str) -> None:
        """Write text to stdout; clears the line only where the text would reach it, or the end of its own row."""
        with self._lock:
            was_drawn = self._is_drawn
            if self._is_text_here:
                reach = self._column + cell_len(text) + text.count("\t") * _TAB_COLUMNS
                if self._column == 0 or reach >= self._width or "\n" in text:
                    self._clear()
                self._column = _column_after(text, self._column, self._width)
            self._text.write(text)
            self._text.flush()
            if was_drawn and not self._is_drawn:
                self._draw()

    def look(self) -> None:
        """Look at the run and draw what it does, as the thread does again and again."""
        progress = self._sample()
        with self._lock:
            if self._ended.is_set():
                return
            self._width = self._num_columns()
            self._line = self._status.line(progress, self._clock(), self._width - 1)
            if _is_in_foreground(self._terminal):
                self._draw()

    def _run(self) -> None:
        while not self._ended.wait(_INTERVAL_S):
            try:
                self.look()
            except OSError:  # the terminal has gone
                return

    def _draw(self) -> None:
        """At the end of a full row any move would lose its last character: the line waits for the next text."""
        if self._column >= self._width:
            return
        start = _SAVE if self._column == 0 else _TO_NEXT_LINE
        self._put(f"{_CLEAR_BELOW}{start}{self._line}{_RESTORE}")
        self._is_drawn = True

    def _clear(self) -> None:
        if self._is_drawn:
            self._put(_CLEAR_BELOW)
            self._is_drawn = False

    def _put(self, sequence: str) -> None:
        self._terminal.write(sequence)
        self._terminal.flush()


@contextlib.contextmanager
def shown_status(sample: Callable[[], Progress], *, is_wanted: bool) -> Iterator[Callable[[str], None]]:
    """How to write text while a run goes on: with the line where it is wanted and can be drawn, plainly elsewhere."""
    if not (is_wanted and _can_draw()):
        yield _write_plainly
        return
    with StatusLine(sample, sys.stderr, sys.stdout, num_columns=_num_columns) as line:
        yield line.write


def _write_plainly(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _can_draw() -> bool:
    """On a terminal, but not while the text goes into a pipe, whose reader may well write to that terminal."""
    if not sys.stderr.isatty() or os.environ.get("TERM", "dumb") in ("dumb", "unknown"):
        return False
    if sys.stdout.isatty():
        return True
    mode = os.fstat(sys.stdout.fileno()).st_mode
    return not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode))


def _num_columns() -> int:
    """Of the terminal behind stderr; 80 where it does not say."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except OSError:
        return 80


def _is_in_foreground(terminal: TextIO) -> bool:
    """A job in the background leaves the terminal to the shell."""
    try:
        return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return True  # nobody's terminal, such as a test's


def _column_after(text: str, column: int, num_columns: int) -> int:
    """The cursor's column after the text; `num_columns` where a row was filled to its end and not left yet."""
    for char in text:
        width = cell_len(char)
        if char == "\n":
            column = 0
        elif char == "\t":
            column = max(column, min(column - column % _TAB_COLUMNS + _TAB_COLUMNS, num_columns - 1))
        else:
            column = column + width if column + width <= num_columns else width
    return column
