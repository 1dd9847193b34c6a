"""Models named as on the hub: found in its cache, and refused where they are not there or the hub fails."""

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from commands import DRAFT, PROMPT, TARGET, Command, refused, shell

from planner.contracts.report import Report

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]  # most cases start a process


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """HF_HOME with the demo pair in it, as downloads lie there."""
    for name, folder in (("target", TARGET), ("draft", DRAFT)):
        repository = tmp_path / "home" / "hub" / f"models--demo--{name}"
        snapshot = repository / "snapshots" / ("c" * 40)
        (repository / "blobs").mkdir(parents=True)
        (repository / "refs").mkdir()
        for ref in ("main", "v1.0"):
            (repository / "refs" / ref).write_text("c" * 40)
        snapshot.mkdir(parents=True)
        for index, file in enumerate(sorted(Path(folder).iterdir())):
            blob = repository / "blobs" / f"{index:064x}"
            shutil.copy(file, blob)
            (snapshot / file.name).symlink_to(Path("..") / ".." / "blobs" / blob.name)
    return tmp_path / "home"


def from_hub(hub: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    line = '"$RUNTIME" generate "def add(a, b):" -n 4 -t 1 "$@"'
    return shell(line, *arguments, HF_HOME=str(hub), HF_HUB_OFFLINE="1")


def test_models_are_found_in_the_hubs_cache_by_id_and_revision(hub: Path) -> None:
    run = from_hub(hub, "-m", "demo/target", "-md", "demo/draft@v1.0", "--json")
    assert run.returncode == 0, run.stderr
    report = Report.model_validate_json(run.stdout)
    assert report.target.name == "demo/target"
    assert json.loads(report.plan.draft.model_dump_json())["model"] == "demo/draft@v1.0"
    assert report.text


@pytest.mark.parametrize("name", ["demo/unknown", "demo/target@v9", "demo/target@" + "d" * 40])
def test_model_that_is_not_in_the_hubs_cache_is_refused_offline(name: str, hub: Path) -> None:
    run = from_hub(hub, "-m", name)
    assert (run.returncode, run.stdout) == (3, b"")
    assert b"cannot be had from the hub" in run.stderr
    assert b"Traceback" not in run.stderr


def test_names_that_the_hub_would_refuse_are_refused_here(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("demo/..", "-/-", "demo/unknown", "demo/" + "x" * 100):
        refused(command("generate", PROMPT, "-m", name), 3, "cannot be had from the hub")


def test_hub_that_fails_in_any_way_is_bad_input(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    failures: Sequence[Exception] = (
        HTTPError("the connection broke"),
        OSError("no route to host"),
        ValueError("Unknown scheme for proxy URL"),
        ImportError("Using SOCKS proxy, but the 'socksio' package is not installed."),
    )
    for failure in failures:

        def fail(*_: object, failure: Exception = failure, **__: object) -> str:
            raise failure

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        refused(command("generate", PROMPT, "-m", "demo/unknown"), 3, str(failure))
