"""What several test modules share: one thread, commands run in this process, and tiny checkpoints, written once."""

import gc
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import Command, Run, Stdin, Stdout
from simulated_cuda import Driver
from tiny_models import TinyModel, write_checkpoint

from planner.contracts.plan import Dtype


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache that no test shares with the user, and runs that measure no profile unless a test asks for it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("DRAFTSTREAM_CACHE", str(tmp_path_factory.mktemp("cache")))
        patched.setenv("DRAFTSTREAM_PROFILE", "none")
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Tiny random checkpoints by family; the folders are shared, so that a test must copy what it would change."""
    folders: dict[tuple[str, Dtype, int, float], Path] = {}

    def folder(family: str, dtype: Dtype = "fp32", *, seed: int = 0, noise: float = 0.0) -> Path:
        key = (family, dtype, seed, noise)
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp(f"{family}-{dtype}")
            write_checkpoint(folders[key], family, dtype, seed=seed, noise=noise)
        return folders[key]

    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One compute thread, as many tiny products are slower on several."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    """The console scripts, run in this process."""
    from planner.cli import main as planner_main
    from runtime.cli import main as runtime_main

    mains = {"planner": planner_main, "runtime": runtime_main}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for name in ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str, package: str = "runtime", stdin: Stdin | None = None, stdout: Stdout | None = None) -> Run:
        out, err = stdout or Stdout(), Stdout()
        with monkeypatch.context() as patched:
            patched.setattr(sys, "argv", [package, *arguments])
            patched.setattr(sys, "stdin", stdin or Stdin(b""))
            patched.setattr(sys, "stdout", out)
            patched.setattr(sys, "stderr", err)
            with pytest.raises(SystemExit) as stop:
                mains[package]()
        assert isinstance(stop.value.code, int)
        return Run(stop.value.code, out.text(), err.text())

    yield run
    gc.unfreeze()
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """The CUDA runtime's calls that pin memory, replaced."""
    driver = Driver()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: driver)
    monkeypatch.setattr(torch, "ones", driver.launch)
    return driver


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly where pages were opened in no browser."""
    skipped = terminalreporter.getreports("skipped")
    reasons = {report.longrepr[2] for report in skipped if isinstance(report.longrepr, tuple)}
    for reason in sorted(reason for reason in reasons if "NO BROWSER" in reason):
        terminalreporter.write_sep("!", reason.removeprefix("Skipped: "), red=True, bold=True)
