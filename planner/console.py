"""What the commands share: errors in three lines with their exit codes, signals, and the result alone on stdout."""

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
    try:
        app()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except InterruptedBySignalError as interrupt:
        code = interrupt.exit_code
    except DraftstreamError as error:
        code = _report(error)
    except BrokenPipeError:
        code = 128 + signal.SIGPIPE  # whoever read stdout has gone
    except (MemoryError, RuntimeError, OSError) as error:
        if not _is_out_of_memory(error) and not isinstance(error, OSError):
            raise
        code = _report(
            ResourceFailureError(
                "the system failed the run",
                why=(str(error).strip().splitlines() or [type(error).__name__])[0],
                remedy="free memory or disk, or plan with smaller budgets",
            )
        )
    _finish(code)


def _finish(code: int) -> NoReturn:
    """End the process; output that nobody reads any more is dropped without a complaint."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _on_signal(number: int, _frame: FrameType | None) -> None:
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, _on_second_signal)
    raise InterruptedBySignalError(number)


def _on_second_signal(number: int, _frame: FrameType | None) -> None:
    os._exit(128 + number)


def _report(error: DraftstreamError) -> int:
    if os.environ.get(_DEBUG):
        traceback.print_exception(error)
    sys.stderr.write(f"error: {error}\n")
    return error.exit_code


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error)
