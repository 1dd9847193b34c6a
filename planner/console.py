"""What the commands share: errors in three lines with their exit codes, signals, and the result alone on stdout."""

import contextlib
import io
import os
import signal
import sys
import traceback
from types import FrameType
from typing import NoReturn

import typer

from planner.contracts.errors import DraftstreamError, ResourceFailureError

EXIT_CODES = (
    "Exit codes: 0 ok, 1 internal error, 2 usage, 3 bad input, 4 no feasible plan, 5 plan of another machine or model, "
    "6 resource failure, 7 self-check failed, 130 and 143 interrupted."
)
_DEBUG = "DRAFTSTREAM_DEBUG"


class InterruptedBySignalError(BaseException):
    """SIGINT or SIGTERM arrived; not an Exception, so that nothing on the way up takes it for a failure."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


def run(app: typer.Typer) -> NoReturn:
    """Run a command line to its exit code; the first signal ends it in order, a second one at once."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _on_signal)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a locale without the text's characters is no reason to lose it
    code = _exit_code(app)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _on_second_signal)  # nothing is left to end in order
    sys.exit(_flushed(code))


def _exit_code(app: typer.Typer) -> int:
    try:
        _check_stdout()
        app()
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # typer and rich make a 1 of it
            return 128 + signal.SIGPIPE
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except InterruptedBySignalError as interrupt:
        return interrupt.exit_code
    except DraftstreamError as error:
        return _report(error)
    except BrokenPipeError:
        return 128 + signal.SIGPIPE  # whoever read stdout has gone
    except (MemoryError, RuntimeError, OSError) as error:
        if not _is_out_of_memory(error) and not isinstance(error, OSError):
            raise
        return _report(_system_failure(error))
    return 0


def _flushed(code: int) -> int:
    """The exit code, once everything is written; output that nobody reads any more is dropped without a complaint."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if code == 0:
                is_gone = isinstance(error, BrokenPipeError)
                code = 128 + signal.SIGPIPE if is_gone else _report(_system_failure(error))
    return code


def _system_failure(error: Exception) -> ResourceFailureError:
    return ResourceFailureError(
        "the system failed the run",
        why=(str(error).strip().splitlines() or [type(error).__name__])[0],
        remedy="free memory or disk, or plan with smaller budgets",
    )


def _check_stdout() -> None:
    if sys.stdout is None:
        raise ResourceFailureError(
            "stdout is closed", why="the result goes there", remedy="send it to a file or a pipe"
        )


def _on_signal(number: int, _frame: FrameType | None) -> None:
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, _on_second_signal)
    raise InterruptedBySignalError(number)


def _on_second_signal(number: int, _frame: FrameType | None) -> None:
    os._exit(128 + number)


def _report(error: DraftstreamError) -> int:
    if os.environ.get(_DEBUG):
        traceback.print_exception(error)
    lines = (f"error: {error.what}", f"  why: {error.why}", f"  try: {error.remedy}")
    with contextlib.suppress(OSError, AttributeError):  # stderr is full, or closed: the exit code has to say it
        sys.stderr.write("".join(f"{_printable(line)}\n" for line in lines))
    return error.exit_code


def _printable(line: str) -> str:
    """The line with control characters escaped: names out of a stranger's files must not steer the terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error)
