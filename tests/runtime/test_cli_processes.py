"""Pipes, descriptors and signals: readers that leave, full disks, and interruptions at any time."""

import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from commands import BOUND_S, DRAFT, PROMPT, Command, Run, Stdout, script, shell, subprocess_environment

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]  # most cases start a process

ENDING_S = 4  # after a signal: two are promised, twice that where others compute as well


# --- pipes and descriptors ---


def test_reader_that_has_left_ends_the_run_with_the_code_of_a_broken_pipe(command: Command) -> None:
    for arguments in ([], ["--json"]):
        reading, writing = os.pipe()
        os.close(reading)
        run = command("generate", PROMPT, "-n", "4", *arguments, stdout=Stdout(descriptor=writing))
        assert run.code == 128 + signal.SIGPIPE
        assert "error" not in run.err


def test_full_disk_under_stdout_is_a_resource_failure(command: Command) -> None:
    for arguments in ([], ["--json"]):
        run = command(
            "generate", PROMPT, "-n", "4", *arguments, stdout=Stdout(descriptor=os.open("/dev/full", os.O_WRONLY))
        )
        assert run.code == 6
        assert "No space left on device" in run.err
    run = command("plan", DRAFT, package="planner", stdout=Stdout(descriptor=os.open("/dev/full", os.O_WRONLY)))
    assert run.code == 6
    assert "No space left on device" in run.err


def test_reader_that_leaves_ends_the_run_without_a_traceback() -> None:
    run = shell('"$RUNTIME" generate "def add(a, b):" -n 99 | head -c 1; exit ${PIPESTATUS[0]}')
    assert run.returncode == 128 + signal.SIGPIPE, run.stderr
    assert b"Traceback" not in run.stderr
    assert b"Exception ignored" not in run.stderr


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("generate x >&-", 6),
        ("generate x --plan p --slots 2 2>/dev/full", 2),
        ("generate x --plan p --slots 2 2>&-", 2),
        ("generate <&-", 2),
        ("generate <&- >&- 2>&-", 6),
    ],
)
def test_closed_or_full_descriptors_leave_the_exit_code(line: str, code: int) -> None:
    run = shell(f'"$RUNTIME" {line}')
    assert run.returncode == code
    assert b"Traceback" not in run.stderr


# --- signals ---


def start_generating(*arguments: str) -> subprocess.Popen[bytes]:
    """A run that would take long, once it handles signals."""
    slow = ["--link", "emulated:200MB/s", "--device-memory", "14MiB", "-n", "900", "-t", "1"]
    process = subprocess.Popen(
        [script("runtime"), "generate", PROMPT, *slow, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=subprocess_environment(),
    )
    status = Path(f"/proc/{process.pid}/status")
    while not handles_signals(status.read_text()):
        time.sleep(0.005)
    return process


def handles_signals(status: str) -> bool:
    caught = re.search(r"SigCgt:\s*([0-9a-f]+)", status)
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def interrupt(process: subprocess.Popen[bytes], number: signal.Signals) -> Run:
    """Send the signal; the process must end by it soon, and quietly."""
    sent_s = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=BOUND_S)
    run = Run(process.returncode, out.decode(), err.decode())
    # While the interpreter itself ends, a signal has its default action again; a shell says the same code of that.
    assert run.code in (128 + number, -number), run.err
    assert "Traceback" not in run.err
    assert "Exception" not in run.err
    assert time.monotonic() - sent_s < ENDING_S
    return run


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_signal_while_writing_keeps_the_text_and_shows_statistics(number: signal.Signals) -> None:
    process = start_generating()
    assert process.stdout is not None
    assert process.stdout.read(1)
    run = interrupt(process, number)
    assert "interrupted" in run.err, "statistics of what there is"
    assert "generation" in run.err


def test_signals_at_the_start_end_the_run_at_once() -> None:
    for number, wait_s in ((signal.SIGINT, 0.0), (signal.SIGTERM, 0.3), (signal.SIGINT, 0.8)):
        process = start_generating()
        time.sleep(wait_s)
        run = interrupt(process, number)
        assert run.err == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_signal_at_any_time_ends_the_run_in_order(number: signal.Signals) -> None:
    moments = random.Random(number)
    for _ in range(6):
        process = start_generating()
        time.sleep(moments.uniform(0, 6))
        interrupt(process, number)


def test_interrupted_json_is_whole() -> None:
    process = start_generating("--json")
    time.sleep(6)
    run = interrupt(process, signal.SIGINT)
    if run.out:  # else it had not begun to write
        assert run.report.finish_reason == "interrupted"
        assert run.report.text


def test_signals_in_a_row_end_the_run() -> None:
    process = start_generating()
    assert process.stdout is not None
    process.stdout.read(1)
    for _ in range(5):
        process.send_signal(signal.SIGINT)
    interrupt(process, signal.SIGINT)
