"""What the commands share: errors in three lines with their exit codes, signals, and the result alone on stdout."""

import contextlib
import gc
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

import typer

from planner.contracts.errors import DraftstreamError, ResourceFailureError

EXIT_CODES = (
    "Exit codes: 0 ok, 1 internal error, 2 usage, 3 bad input, 4 no feasible plan, 5 plan of another machine or model, "
    "6 resource failure, 7 self-check failed, 130 and 143 interrupted."
)
_DEBUG = "DRAFTSTREAM_DEBUG"
_MOST_ENDING_S = 1.5


class InterruptedBySignalError(BaseException):
    """SIGINT or SIGTERM arrived; not an Exception, so that nothing on the way up takes it for a failure."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


def run(app: typer.Typer) -> NoReturn:
    """Run a command line to its exit code. A signal ends it at once, but for what runs `ending_in_order`."""
    _handle_signals(_exit_at_once)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a locale without the text's characters is no reason to lose it
    code = _exit_code(app)
    gc.freeze()  # the collections at exit would walk through all of torch and transformers, for most of a second
    sys.exit(_flushed(code))


@contextlib.contextmanager
def ending_in_order() -> Iterator[None]:
    """Within it the first signal raises InterruptedBySignalError, so that what there is by then is kept.

    Not for imports: libraries, and C modules above all, make other errors of an exception that arrives within them.
    """
    _handle_signals(_raise_interrupt)
    try:
        yield
    finally:
        _handle_signals(_exit_at_once)


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


def _handle_signals(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _raise_interrupt(number: int, _frame: FrameType | None) -> None:
    """End in order what runs; at once on a second signal, and where the exception was lost or the way up is blocked."""
    _handle_signals(_exit_at_once)
    signal.signal(signal.SIGALRM, lambda _number, _frame: os._exit(128 + number))
    signal.setitimer(signal.ITIMER_REAL, _MOST_ENDING_S)
    raise InterruptedBySignalError(number)


def _exit_at_once(number: int, _frame: FrameType | None) -> None:
    os._exit(128 + number)


def _report(error: DraftstreamError) -> int:
    if os.environ.get(_DEBUG):
        traceback.print_exception(error)
    lines = (f"error: {error.what}", f"  why: {error.why}", f"  try: {error.remedy}")
    with contextlib.suppress(OSError, AttributeError):  # stderr is full, or closed: the exit code has to say it
        sys.stderr.write("".join(f"{printable(line)}\n" for line in lines))
    return error.exit_code


def printable(line: str) -> str:
    """The line with control characters escaped: names out of a stranger's files must not steer the terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error)
