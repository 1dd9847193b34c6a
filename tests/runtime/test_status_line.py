"""The live line: what it says, that it leaves the text alone on any screen, and when there is none."""

import fcntl
import io
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from terminal import Terminal

from planner.contracts.performance import RoundSplit
from planner.contracts.plan import Unit
from profiles import demo_folder
from runtime.api import Limits, load, make_plan
from runtime.decode import Round
from runtime.model import StreamProgress
from runtime.progress import Phase, Progress
from runtime.status_line import StatusLine, shown_status
from runtime.status_text import LinkRate, StatusText

STARTED_S = 100.0
GB = 10**9


def unit(kind: str = "layer", index: int = 34) -> Unit:
    return Unit.model_validate(
        {"kind": kind, "index": index, "placement": "streamed", "source": "ram", "wire_bytes": 1, "dense_bytes": 1}
    )


def finished_round(num_accepted: int, round_s: float = 0.5, num_drafted: int = 8) -> Round:
    split = RoundSplit(round_s=round_s, compute_s=0, waiting_for_weights_s=0, draft_s=0, host_s=0, unexplained_s=0)
    return Round(
        tokens=(1,) * (num_accepted + 1),
        num_draft_tokens=num_drafted,
        draft_depth=num_drafted,
        num_ngram_tokens=0,
        num_accepted_tokens=num_accepted,
        num_accepted_ngram_tokens=0,
        compute=split,
        link=None,
    )


def progress(
    *,
    phase: Phase = "text",
    pass_number: int = 7,
    rounds: Sequence[Round] = (),
    stream: StreamProgress | None = None,
    has_draft: bool = True,
) -> Progress:
    return Progress(
        phase=phase,
        pass_number=pass_number,
        num_prompt_passes=4,
        num_layers=80,
        stream=stream,
        rounds=rounds,
        has_draft=has_draft,
    )


def streaming(copied_bytes: int, of: Unit | None = None) -> StreamProgress:
    return StreamProgress(unit=of or unit(), copied_bytes=copied_bytes)


# --- what it says ---


def test_line_names_pass_layer_link_speed_and_what_was_accepted() -> None:
    status = StatusText(STARTED_S)
    rounds = [finished_round(3), finished_round(0)]
    status.line(progress(rounds=rounds[:1], stream=streaming(0)), STARTED_S + 1, 200)
    line = status.line(progress(rounds=rounds, stream=streaming(25 * GB)), STARTED_S + 2, 200)
    # 5 tokens in 1 s; 3 accepted in 2 rounds; 25 GB between two looks a second apart
    assert line == "2 s  pass 7  layer 35/80  link 25.00 GB/s  5.00 tok/s  accepted 1.5, last 0/8"


def test_prompt_has_no_speed_yet_but_moves() -> None:
    status = StatusText(STARTED_S)
    reading = progress(phase="prompt", pass_number=2, stream=streaming(0, unit(index=0)))
    assert status.line(reading, STARTED_S + 0.4, 200) == "0 s  prompt, pass 2/4  layer 1/80"
    later = progress(phase="prompt", pass_number=2, stream=streaming(4 * GB, unit("mlp", 11)))
    assert status.line(later, STARTED_S + 2.4, 200) == ("2 s  prompt, pass 2/4  layer 12/80  link 2.00 GB/s")


def test_line_leaves_out_what_a_run_does_not_have() -> None:
    line = StatusText(STARTED_S).line(progress(rounds=[finished_round(0)], has_draft=False), STARTED_S + 1, 200)
    assert line == "1 s  pass 7  2.00 tok/s"
    head = progress(phase="check", stream=streaming(0, unit("head_chunk", 1)))
    assert StatusText(STARTED_S).line(head, STARTED_S, 200) == "0 s  verifying  head 2"


@pytest.mark.parametrize("num_columns", [*range(1, 100)])
def test_line_fits_and_breaks_no_figure(num_columns: int) -> None:
    status, full = StatusText(STARTED_S), StatusText(STARTED_S)
    busy = progress(rounds=[finished_round(3)], stream=streaming(0))
    whole = full.line(busy, STARTED_S + 12, 500)
    line = status.line(busy, STARTED_S + 12, num_columns)
    assert len(line) <= num_columns
    assert whole.startswith(line)
    assert whole == line or num_columns < 4 or whole[len(line) : len(line) + 2] == "  "


def test_each_round_is_added_once_while_their_list_grows() -> None:
    status, rounds = StatusText(STARTED_S), [finished_round(1)]
    for _ in range(3):
        line = status.line(progress(rounds=rounds), STARTED_S, 200)
    assert "4.00 tok/s  accepted 1.0, last 1/8" in line
    rounds.append(finished_round(4, num_drafted=5))
    assert "7.00 tok/s  accepted 2.5, last 4/5" in status.line(progress(rounds=rounds), STARTED_S, 200)


def test_link_rate_is_taken_between_the_ends_of_copies() -> None:
    rate = LinkRate()
    assert rate.bytes_per_s(0.0) is None
    # A copy of 2 GB ends every 2 s, and is looked at every 0.1 s
    for tick in range(101):
        rate.add(tick / 10, tick // 20 * 2 * GB)
        if tick >= 20:
            assert rate.bytes_per_s(tick / 10) == pytest.approx(GB)


def test_link_rate_forgets_and_falls_when_nothing_arrives() -> None:
    rate = LinkRate()
    for tick in range(101):
        rate.add(tick / 10, tick * GB)  # 10 GB/s
    for tick in range(101, 201):
        rate.add(tick / 10, 100 * GB + (tick - 100) * GB // 10)  # then 1 GB/s
    assert rate.bytes_per_s(20.0) == pytest.approx(GB)
    assert rate.bytes_per_s(22.9) == pytest.approx(GB), "a copy that takes a while is no stall"
    falling = [rate.bytes_per_s(now_s) or 0.0 for now_s in (23.1, 24.0, 30.0, 60.0)]
    assert falling == sorted(falling, reverse=True)
    assert falling[-1] == pytest.approx(3 * GB / 43, rel=0.05)


@pytest.mark.parametrize("memory", ["6MiB", "64MiB"], ids=["streamed", "resident"])
def test_run_says_where_it_is_after_each_token(memory: str) -> None:
    plan = make_plan(demo_folder("target"), limits=Limits(device=memory), context_tokens=64, link="disk")
    with load(plan=plan) as engine:
        generation = engine.generate([5] * 40, max_tokens=4)
        before = generation.progress()
        assert (before.phase, before.pass_number) == ("prompt", 1)
        assert before.num_prompt_passes == -(-40 // plan.prefill_chunk_tokens)
        for count, _ in enumerate(generation):
            now = generation.progress()
            assert now.pass_number == before.num_prompt_passes + count + 1
            assert now.phase == ("text" if count < 3 else "check")
            assert len(now.rounds) == count
            if memory == "64MiB":
                assert now.stream is None
            else:
                assert now.stream is not None
                assert now.stream.unit == plan.streamed[0], "between passes the first unit is awaited"
                assert now.stream.copied_bytes >= (before.num_prompt_passes + count) * plan.streamed_bytes


# --- what it does to the screen ---


class Screen(io.StringIO):
    """Text and line on one terminal, with or without the text."""

    def __init__(self, terminal: Terminal, *, is_terminal: bool = True) -> None:
        super().__init__()
        self.terminal = terminal
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal

    def write(self, text: str) -> int:
        if self.is_terminal:
            self.terminal.feed(text.replace("\r\n", "\n").replace("\n", "\r\n"))  # as the line discipline does
        return super().write(text)


@dataclass
class Bench:
    """A line over a made-up run, whose clock and width the test sets."""

    line: StatusLine
    terminal: Terminal
    now_s: list[float]


def bench(num_columns: int = 30, num_rows: int = 5, *, text_elsewhere: bool = False) -> Bench:
    terminal, now_s = Terminal(num_columns, num_rows), [STARTED_S]
    status = Screen(terminal)
    line = StatusLine(
        progress,
        status,
        Screen(terminal, is_terminal=False) if text_elsewhere else status,
        num_columns=lambda: terminal.num_columns,
        clock=lambda: now_s[0],
    )
    return Bench(line, terminal, now_s)


def close(line: StatusLine) -> None:
    """End a line whose thread was never started."""
    line._thread.start()
    line.__exit__()


def test_line_stands_below_the_text_and_moves_on_with_it() -> None:
    made = bench()
    made.line.look()
    assert made.terminal.lines() == ["0 s  pass 7"]
    made.line.write("Once upon")
    assert made.terminal.lines() == ["Once upon", "0 s  pass 7"]
    made.now_s[0] += 3
    made.line.look()
    made.line.write(" a time\nthere")
    assert made.terminal.lines() == ["Once upon a time", "there", "3 s  pass 7"]
    close(made.line)
    assert made.terminal.lines() == ["Once upon a time", "there"]


def test_line_scrolls_the_last_row_up_rather_than_overwrite_it() -> None:
    made = bench(num_rows=2)
    made.line.write("1\n2")
    made.line.look()
    assert made.terminal.lines() == ["1", "2", "0 s  pass 7"]
    made.line.write("\n3\n4")
    assert made.terminal.lines() == ["1", "2", "3", "4", "0 s  pass 7"]


def test_text_that_reaches_the_end_of_a_row_loses_no_character() -> None:
    made = bench(num_columns=12)
    made.line.look()
    made.line.write("abcdefghijk")
    assert made.terminal.lines() == ["abcdefghijk", "0 s  pass 7"]
    made.line.write("l")
    made.line.look()
    assert made.terminal.lines() == ["abcdefghijkl"], "no move is safe there"
    made.line.write("m")
    made.line.look()
    assert made.terminal.lines() == ["abcdefghijkl", "m", "0 s  pass 7"]


def test_text_elsewhere_leaves_the_line_in_its_row() -> None:
    made = bench(text_elsewhere=True)
    made.line.write("a\nb\n")
    for _ in range(3):
        made.now_s[0] += 1
        made.line.look()
    assert made.terminal.lines() == ["3 s  pass 7"]
    assert made.terminal.row == 0
    close(made.line)
    assert made.terminal.lines() == []


def test_text_that_stays_in_its_row_costs_no_drawing() -> None:
    made = bench(num_columns=80)
    made.line.write("Once")
    made.line.look()
    before = made.line._terminal.getvalue()  # type: ignore[attr-defined]
    made.line.write(" upon a time")
    assert made.line._terminal.getvalue() == before + " upon a time"  # type: ignore[attr-defined]


pieces = st.text(alphabet="ab \n\t\u4e2d", min_size=1, max_size=9)


@settings(deadline=None, max_examples=300)
@given(
    steps=st.lists(st.one_of(pieces, st.none()), max_size=30),
    num_columns=st.integers(4, 24),
    num_rows=st.integers(2, 6),
)
def test_text_comes_out_as_without_a_line(steps: list[str | None], num_columns: int, num_rows: int) -> None:
    """`None` is a look at the run, the rest is text."""
    made, plain = bench(num_columns, num_rows), Terminal(num_columns, num_rows)
    for step in steps:
        if step is None:
            made.line.look()
        else:
            made.line.write(step)
            plain.feed(step.replace("\n", "\r\n"))
        below = made.terminal.lines()[len(plain.lines()) :]
        assert len([line for line in below if line]) <= 1
    close(made.line)
    assert made.terminal.lines() == plain.lines()


def test_resized_terminals_are_asked_again() -> None:
    made = bench(num_columns=30)
    made.line.look()
    made.terminal.num_columns = 8
    made.line.look()
    assert made.line._line == "0 s"


def test_line_is_wiped_when_the_run_fails() -> None:
    terminal = Terminal(30, 5)
    screen = Screen(terminal)

    def run() -> None:
        with StatusLine(progress, screen, screen, num_columns=lambda: 30) as line:
            line.write("text")
            line.look()
            assert len(terminal.lines()) == 2
            raise RuntimeError

    with pytest.raises(RuntimeError):
        run()
    assert terminal.lines() == ["text"]
    assert "status" not in [thread.name for thread in threading.enumerate()]


def test_terminal_that_goes_away_ends_the_line_and_not_the_run() -> None:
    class Gone(Screen):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    text = io.StringIO()
    with StatusLine(progress, Gone(Terminal(30, 5)), text, num_columns=lambda: 30) as line:
        deadline_s = time.monotonic() + 10
        while line._thread.is_alive() and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert not line._thread.is_alive()
        line.write("goes on")
    assert text.getvalue() == "goes on"


def test_line_is_drawn_at_most_ten_times_a_second() -> None:
    looks: list[float] = []

    def sample() -> Progress:
        looks.append(time.monotonic())
        return progress()

    screen = Screen(Terminal(30, 5))
    with StatusLine(sample, screen, screen, num_columns=lambda: 30):
        time.sleep(0.55)
    assert 1 <= len(looks) <= 5


@pytest.mark.parametrize("name", ["dumb", "unknown", None])
def test_no_line_where_it_cannot_be_drawn(name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    text = Screen(Terminal(30, 5))
    monkeypatch.setattr(sys, "stderr", Screen(Terminal(30, 5)))
    monkeypatch.setattr(sys, "stdout", text)
    if name is None:
        monkeypatch.delenv("TERM", raising=False)
    else:
        monkeypatch.setenv("TERM", name)
    before = threading.active_count()
    with shown_status(_never, is_wanted=True) as write:
        write("text")
        assert threading.active_count() == before
    assert text.getvalue() == "text"


def test_run_without_a_line_starts_no_thread_and_is_never_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for is_wanted, is_terminal in ((False, True), (True, False)):
        monkeypatch.setattr(sys, "stderr", Screen(Terminal(30, 5), is_terminal=is_terminal))
        before = threading.active_count()
        with shown_status(_never, is_wanted=is_wanted):
            assert threading.active_count() == before
            time.sleep(0.15)


def _never() -> Progress:
    raise AssertionError("the run was looked at")


# --- in a terminal ---

BOUND_S = 120
STREAMING = ["--link", "emulated:60MB/s", "--device-memory", "6MiB", "-c", "96", "-n", "12", "--threads", "1"]
LINE = re.compile(r"\d+ s  (?:prompt, pass \d/\d|pass \d+|verifying)")


@dataclass(frozen=True, slots=True)
class Session:
    """What a command wrote to its terminal, and how it ended."""

    code: int
    data: str
    terminal: Terminal


def in_terminal(
    line: str, *arguments: str, until: Callable[[str], bool] | None = None, num_columns: int = 60
) -> Session:
    """Run a shell line in which "$@" is `runtime generate` and its arguments; `until` what is seen, then Ctrl-C."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 12, num_columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    script = str(Path(sys.executable).parent / "runtime")
    process = subprocess.Popen(
        ["bash", "-c", line, "bash", script, "generate", "def add(a, b):", *STREAMING, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env={**kept, "TERM": "xterm", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    os.close(theirs)
    data = b""
    try:
        while True:
            data += os.read(ours, 65536)
            if until is not None and until(data.decode(errors="replace")):
                os.killpg(process.pid, signal.SIGINT)
                until = None
    except OSError:  # the last writer has gone
        pass
    finally:
        os.close(ours)
    code = process.wait(BOUND_S)
    terminal = Terminal(num_columns, 12)
    terminal.feed(data.decode())
    return Session(code, data.decode(), terminal)


def wrapped(text: str, num_columns: int) -> list[str]:
    """The text as a terminal shows it."""
    terminal = Terminal(num_columns, 1000)
    terminal.feed(text.replace("\n", "\r\n"))
    return terminal.lines()


@pytest.mark.slow
def test_line_runs_under_the_text_and_is_gone_at_the_end(tmp_path: Path) -> None:
    report = tmp_path / "text"
    plain = in_terminal(f'"$@" > {report}', "-q", "--no-spec")
    assert (plain.code, plain.data) == (0, "")
    session = in_terminal('"$@"', "--no-spec", "--no-status")
    assert not LINE.search(session.data)
    shown = in_terminal('"$@"', "--no-spec")
    assert shown.code == 0, shown.data
    seen = LINE.findall(shown.data)
    assert any(line.startswith("0 s  prompt") for line in seen), "it moves before the first token"
    passes = [int(line.rpartition(" ")[2]) for line in seen if "  pass " in line]
    assert passes == sorted(passes)
    assert passes[-1] > passes[0] >= 2, "the prompt's pass is the first"
    layers = {int(found) for found in re.findall(r"layer (\d+)/12", shown.data)}
    assert len(layers) > 3
    assert layers <= set(range(1, 13))
    assert re.search(r"link 0\.06 GB/s", shown.data)
    text = wrapped(report.read_text(), 60)
    assert shown.terminal.lines()[: len(text)] == text
    assert not LINE.search("\n".join(shown.terminal.lines()))


@pytest.mark.slow
def test_accepted_tokens_are_in_the_line_where_something_drafts() -> None:
    shown = in_terminal('"$@"', num_columns=120)
    assert re.search(r"\d+\.\d\d tok/s  accepted \d\.\d, last \d/\d", shown.data), shown.data


@pytest.mark.slow
@pytest.mark.parametrize("line", ['"$@" | cat', '"$@" 2>&1 | cat', '"$@" -q', 'TERM=dumb "$@"'])
def test_no_line_when_piped_or_quiet(line: str) -> None:
    session = in_terminal(line)
    assert session.code == 0
    assert "\x1b7" not in session.data
    assert not LINE.search(session.data)


@pytest.mark.slow
def test_line_is_drawn_while_the_text_goes_to_a_file(tmp_path: Path) -> None:
    session = in_terminal(f'"$@" --json > {tmp_path / "report.json"}')
    assert session.code == 0
    assert LINE.search(session.data)
    assert "\x1b" not in (tmp_path / "report.json").read_text()
    assert not LINE.search("\n".join(session.terminal.lines()))


@pytest.mark.slow
def test_interrupt_wipes_the_line_and_keeps_the_text() -> None:
    session = in_terminal('"$@"', until=lambda data: len(LINE.findall(data)) > 6)
    assert session.code in (130, -signal.SIGINT)
    lines = session.terminal.lines()
    assert not LINE.search("\n".join(lines))
    assert "interrupted" in "\n".join(lines)
