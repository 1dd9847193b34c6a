"""Commands as users type them: run in this process by the console script's own function, or through a shell."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from planner.contracts.report import Report
from profiles import demo_folder

TARGET, DRAFT = str(demo_folder("target")), str(demo_folder("draft"))
PROMPT = "def add(a, b):"
STREAMING = ["--link", "disk:direct", "--device-memory", "6MiB", "-c", "64"]
BOUND_S = 240  # of one process, on a machine whose disk may be busy


@dataclass(frozen=True, slots=True)
class Run:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def report(self) -> Report:
        """Stdout as the one JSON document that it must be."""
        return Report.model_validate_json(self.out)


class Stdin(io.TextIOWrapper):
    """A stdin with fixed bytes, perhaps of a terminal."""

    def __init__(self, content: bytes, *, is_terminal: bool = False) -> None:
        super().__init__(io.BytesIO(content), encoding="utf-8")
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


class Stdout(io.TextIOWrapper):
    """A stdout, into memory or an open descriptor, that calls back before its first write."""

    def __init__(
        self,
        before_write: Callable[[], None] | None = None,
        *,
        encoding: str = "utf-8",
        descriptor: int | None = None,
    ) -> None:
        self.content = io.BytesIO() if descriptor is None else os.fdopen(descriptor, "wb")
        super().__init__(self.content, encoding=encoding)
        self._before_write = before_write

    def write(self, text: str) -> int:
        if self._before_write is not None:
            call, self._before_write = self._before_write, None
            call()
        return super().write(text)

    def text(self) -> str:
        """What was written to memory."""
        if not isinstance(self.content, io.BytesIO):
            with suppress(OSError):
                self.content.close()
            return ""
        self.flush()
        return self.content.getvalue().decode(self.encoding)


class Command(Protocol):
    """Runs `runtime` (or another package) in this process."""

    def __call__(
        self, *arguments: str, package: str = "runtime", stdin: Stdin | None = None, stdout: Stdout | None = None
    ) -> Run: ...


def generate(command: Command, *arguments: str) -> Run:
    """A short greedy run that must end well."""
    run = command("generate", PROMPT, "-n", "12", *arguments)
    assert run.code == 0, run.err
    return run


def generate_json(command: Command, *arguments: str) -> Report:
    """What a run of two tokens, which must end well, reports."""
    run = command("generate", *arguments, "-n", "2", "--json")
    assert run.code == 0, run.err
    return run.report


def refused(run: Run, code: int, *parts: str) -> None:
    """The run ended with the code, nothing on stdout, and three lines that hold the parts."""
    assert run.code == code, run.err
    assert run.out == ""
    lines = [line for line in run.err.splitlines() if not line.startswith("[transformers]")]
    assert [line[:7] for line in lines] == ["error: ", "  why: ", "  try: "], run.err
    for part in parts:
        assert part in run.err


def script(package: str) -> str:
    return str(Path(sys.executable).parent / package)


def subprocess_environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "GITHUB_ACTIONS")}
    return {**kept, "OMP_NUM_THREADS": "1", **changes}


def shell(line: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A shell line in which "$RUNTIME" "$@" stands for the command."""
    return subprocess.run(
        ["bash", "-c", line, "bash", *arguments],
        capture_output=True,
        check=False,
        timeout=BOUND_S,
        env=subprocess_environment(RUNTIME=script("runtime"), **environment),
    )
