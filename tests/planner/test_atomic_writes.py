"""A write leaves the old file or the new one, whatever happens: full disks, failing calls, kills."""

import os
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from planner.contracts.base import write_atomically
from planner.contracts.errors import ResourceFailureError


def test_written_file_has_the_mode_that_the_user_wants_for_new_files(tmp_path: Path) -> None:
    former = os.umask(0o022)
    try:
        write_atomically(tmp_path / "file", "new")
    finally:
        os.umask(former)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_write_leaves_nothing_else_in_the_folder(tmp_path: Path) -> None:
    for text in ("one", "two"):
        write_atomically(tmp_path / "file", text)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "two"


def test_file_name_of_the_greatest_length_is_written(tmp_path: Path) -> None:
    write_atomically(tmp_path / ("n" * 255), "new")
    assert (tmp_path / ("n" * 255)).read_text() == "new"


def test_write_through_a_link_keeps_the_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "file")
    for text in ("one", "two"):
        write_atomically(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "real" / "file").read_text() == text


def test_device_is_written_to_and_stays_a_device() -> None:
    write_atomically(Path("/dev/null"), "gone")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_full_disk_is_a_resource_failure_that_names_the_path() -> None:
    with pytest.raises(ResourceFailureError, match="No space left") as caught:
        write_atomically(Path("/dev/full"), "x" * 100_000)
    assert "/dev/full" in caught.value.what
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


def limit_file_size() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that the write fails instead
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


_WRITE = """
import sys
from pathlib import Path
from planner.contracts.base import write_atomically
from planner.contracts.errors import ResourceFailureError
try:
    write_atomically(Path(sys.argv[1]), "n" * 100_000)
except ResourceFailureError as error:
    sys.exit(str(error))
"""


def test_file_that_outgrows_the_limit_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    run = subprocess.run(
        [sys.executable, "-c", _WRITE, tmp_path / "file"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit_file_size,
        timeout=60,
    )
    assert run.returncode == 1
    assert "cannot write" in run.stderr
    assert "File too large" in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("failing", ["fsync", "open"])
def test_each_failing_call_leaves_the_old_file(failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "file", "old")

    def fail(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"planner.contracts.base.os.{failing}", fail)
    with pytest.raises(ResourceFailureError, match="No space left"):
        write_atomically(tmp_path / "file", "new")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_folder_that_cannot_be_written_is_a_resource_failure(tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("a file, not a folder")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / "absent" / "file", tmp_path / "blocked" / "file", tmp_path, tmp_path / "loop"):
        with pytest.raises(ResourceFailureError, match="cannot write"):
            write_atomically(path, "new")
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked" / "file").write_text("old")
    (tmp_path / "locked").chmod(0o500)
    if not os.access(tmp_path / "locked", os.W_OK):  # root may write anywhere
        with pytest.raises(ResourceFailureError, match="Permission denied"):
            write_atomically(tmp_path / "locked" / "file", "new")
    assert (tmp_path / "locked" / "file").read_text() == "old"
    (tmp_path / "locked").chmod(0o700)


_WRITE_FOREVER = """
import sys
from pathlib import Path
from planner.contracts.base import write_atomically
path = Path(sys.argv[1])
write_atomically(path, "a" * 300_000)
print("ready", flush=True)
while True:
    for letter in "ba":
        write_atomically(path, letter * 300_000)
"""


def kill_while_writing(path: Path, wait_s: float) -> None:
    with subprocess.Popen([sys.executable, "-c", _WRITE_FOREVER, path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(wait_s)
        process.kill()


def check_whole_after_kills(folder: Path, num_kills: int) -> None:
    path = folder / "file"
    for number in range(num_kills):
        kill_while_writing(path, wait_s=0.001 * number % 0.03)
        assert path.read_text() in ("a" * 300_000, "b" * 300_000), "a part of a file was left"
    assert all(other == path or other.name.startswith(".tmp-") for other in folder.iterdir())


def test_kill_in_the_middle_of_a_write_leaves_a_whole_file(tmp_path: Path) -> None:
    check_whole_after_kills(tmp_path, num_kills=6)


@pytest.mark.slow
def test_thirty_kills_in_the_middle_of_a_write_leave_a_whole_file(tmp_path: Path) -> None:
    check_whole_after_kills(tmp_path, num_kills=30)
