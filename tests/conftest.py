"""What several test modules share: one compute thread, and tiny checkpoints that are written once per session."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly where pages were opened in no browser."""
    skipped = terminalreporter.getreports("skipped")
    reasons = {report.longrepr[2] for report in skipped if isinstance(report.longrepr, tuple)}
    for reason in sorted(reason for reason in reasons if "NO BROWSER" in reason):
        terminalreporter.write_sep("!", reason.removeprefix("Skipped: "), red=True, bold=True)
