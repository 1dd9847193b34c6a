"""`runtime generate --html`: a page of the run beside its text, and refused before the run where it cannot be."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from profiles import demo_folder
from runtime.cli import main

pytestmark = pytest.mark.slow  # each loads the demo pair

PROMPT = "def add(a, <b>b):"
RUN = ("-m", str(demo_folder("target")), "--device-memory", "6MiB", "--link", "disk:cached", "-c", "64", "-n", "8")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `runtime generate` in this process; its exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["runtime", "generate", PROMPT, *RUN, *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        assert isinstance(stop.value.code, int)
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return run


def test_page_holds_prompt_and_text_and_says_what_nobody_predicted(generate: Run, tmp_path: Path) -> None:
    path = tmp_path / "run.html"
    code, out, _ = generate("--html", str(path))
    assert code == 0
    page = path.read_text(encoding="utf-8")
    assert "<pre class=card>def add(a, &lt;b&gt;b):</pre>" in page
    first = out.strip().splitlines()[0]
    assert first.replace("&", "&amp;").replace("'", "&#x27;").replace('"', "&quot;").strip() in page
    assert "not compared: " in page
    assert page.endswith("</html>\n")


def test_text_is_printed_though_the_page_could_not_be_written(
    generate: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()

    def removing(_path: Path) -> None:
        folder.rmdir()

    monkeypatch.setattr(sys.modules["runtime.cli.generate"], "prepare_page", removing)
    code, out, err = generate("--html", str(folder / "run.html"))
    assert code == 6
    assert len(out) > 1
    assert "cannot write" in err


def test_page_that_cannot_be_is_refused_before_the_run(
    generate: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = generate("--html", str(tmp_path / "absent" / "run.html"))
    assert (code, out) == (6, "")
    assert "there is no folder" in err
    monkeypatch.setattr("planner.extras.find_spec", lambda _name: None)
    code, out, err = generate("--html", str(tmp_path / "run.html"))
    assert (code, out) == (2, "")
    assert "pip install 'draftstream[report]'" in err
