"""`planner what-if` and the pages of `planner recommend` on the command line: tables, files, and what is refused."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from made_up import MB, profile, request
from pages import plain
from rich.console import Console

from planner.changes import Situation
from planner.cli import main
from planner.contracts.machine import Machine
from planner.page import Page
from planner.recommend import recommend
from planner.show_what_if import show_what_if
from planner.what_if import WhatIf
from planner.what_if_view import View, look
from profiles import catalogue

SMALL = ("--machine", "rtx-3060-12gb", "--target", "llama-3.1-8b", "--draft", "llama-3.2-1b")
TABLES = (
    "tok/s by draft length, chains of draft",
    "a round, by kind of draft",
    "memory on cpu",
    "tok/s by link and device memory",
    "what a little more would give",
)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def planner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `planner` in this process; its exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["planner", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        assert isinstance(stop.value.code, int)
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def view() -> View:
    return look("made up", WhatIf(Situation(profile=profile(), request=request(80 * MB))))


def shown(view: View, width: int) -> str:
    console = Console(file=StringIO(), width=width, highlight=False)
    show_what_if(Page(console), view)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


# --- tables ---


def test_every_figure_has_its_table_in_the_terminal(view: View) -> None:
    text = shown(view, 120)
    places = [text.index(title) for title in TABLES]
    assert places == sorted(places)
    assert text.startswith("target on made up: speculate: ")


def test_numbers_are_those_of_recommend(view: View) -> None:
    text = shown(view, 120)
    expected = recommend(view.situation.profile, view.situation.request)
    for point in expected.crossovers[0].points:
        assert f"  {point.speedup_frac:.2f}\n" in text
    for price in expected.prices:
        assert re.search(re.escape(price.what) + rf" +\{price.gain_tokens_per_s:+.2f} ", text)
    assert view.recommendation == expected


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_wider_than_the_terminal(view: View, width: int) -> None:
    assert max(map(len, shown(view, width).splitlines())) <= width


def test_nothing_is_coloured_in_a_pipe(planner: Run) -> None:
    code, out, err = planner("what-if", *SMALL)
    assert (code, err) == (0, "")
    assert "\x1b" not in out


def test_machines_stand_side_by_side_the_fastest_first(planner: Run) -> None:
    code, out, _ = planner("what-if", *SMALL, "--machine", "rtx-4090")
    assert code == 0
    table = out.partition("machines side by side")[2]
    assert table.index("rtx-4090") < table.index("rtx-3060-12gb")
    assert out.startswith("llama-3.1-8b on rtx-3060-12gb: ")


def test_machine_without_a_number_that_is_needed_is_unknown_and_not_slow(
    planner: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = catalogue.machine

    def lacking(name: str) -> Machine:
        found = published(name)
        if found.name != "rtx-4090":
            return found
        device = found.devices[0].model_copy(update={"memory_bytes_per_s": None})
        return found.model_copy(update={"devices": (device,)})

    monkeypatch.setattr(catalogue, "machine", lacking)
    code, out, _ = planner("what-if", *SMALL, "--machine", "rtx-4090")
    assert code == 0
    assert "rtx-4090: the machine rtx-4090 lacks" in out
    assert "0.00 (" not in out
    code, _, err = planner("what-if", *SMALL[2:], "--machine", "rtx-4090")
    assert code == 3
    assert "lacks" in err


# --- JSON ---


def test_document_holds_the_numbers_of_what_if(planner: Run, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    profile().write(path)
    sizes = ("--device-memory", "80MB", "--prompt-tokens", "64", "-n", "64", "--link", "emulated:1GB/s", "--force")
    code, out, err = planner("what-if", str(path), *sizes, "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["machine"] == "made up"
    assert document["map"]["device_bytes"][4] == 80 * MB
    points = document["lengths"]["points"]
    assert [point["draft_len"] for point in points][:3] == [1, 2, 3]
    medians = [point["tokens_per_s"]["p50"] for point in points]
    scored = [point["tokens_per_s"] for point in document["recommendation"]["crossovers"][0]["points"]]
    assert medians == pytest.approx(scored, rel=1e-12)


# --- files ---


def test_page_is_written_whole_and_the_terminal_says_the_same(
    planner: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("planner.grid.MEMORY_FACTORS", (1, 2))
    monkeypatch.setattr("planner.grid.LINK_FACTORS", (1 / 2, 1))
    path = tmp_path / "what_if.html"
    code, out, err = planner("what-if", *SMALL, "--html", str(path), "-c", "1024", "-c", "4096")
    assert (code, err) == (0, "")
    page = path.read_text()
    assert page.endswith("</html>\n")
    assert page.count("data-axis min") == 3
    answer = out.splitlines()[0].partition(": ")[2].partition(" tok/s")[0]
    assert f"{answer} tok/s" in plain(page.partition("<p class=headline>")[2].partition("</p>")[0])
    assert [entry.name for entry in tmp_path.iterdir()] == ["what_if.html"]


def test_page_that_became_large_is_written_and_said_to_be_so(
    planner: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("planner.grid.MEMORY_FACTORS", (1,))
    monkeypatch.setattr("planner.grid.LINK_FACTORS", (1,))
    monkeypatch.setattr("planner.report_page.html.MOST_BYTES", 1_000_000)
    path = tmp_path / "what_if.html"
    code, _, err = planner("what-if", *SMALL, "--html", str(path))
    assert code == 0
    assert path.exists()
    assert "more than the 1 MB that open at once on a phone" in err


def test_recommendation_and_comparison_are_written_as_pages(planner: Run, tmp_path: Path) -> None:
    one, both, plan = tmp_path / "one.html", tmp_path / "both.html", tmp_path / "plan.json"
    code, out, err = planner("recommend", *SMALL, "--html", str(one), "-o", str(plan))
    assert (code, err) == (0, "")
    assert out.rstrip().splitlines()[-1] in one.read_text()
    code, _, err = planner("recommend", *SMALL, "--machine", "rtx-4090", "--html", str(both))
    assert (code, err) == (0, "")
    assert "rtx-4090: " in both.read_text()


def test_figures_are_written_as_pictures(planner: Run, tmp_path: Path) -> None:
    svg, png = tmp_path / "deep" / "svg", tmp_path / "png"
    code, _, err = planner("what-if", *SMALL, "--svg", str(svg), "--png", str(png))
    assert (code, err) == (0, "")
    keys = ["lengths", "map", "memory", "prices", "round", "timeline"]
    assert sorted(path.name for path in svg.iterdir()) == [f"{key}.svg" for key in keys]
    assert sorted(path.name for path in png.iterdir()) == [f"{key}.png" for key in keys]
    assert all(path.read_text().startswith("<?xml") for path in svg.iterdir())
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in png.iterdir())


@pytest.mark.parametrize("command", ["what-if", "recommend"])
@pytest.mark.parametrize("place", ["absent/page.html", "."])
def test_page_that_cannot_be_written_is_said_to_be_so(planner: Run, tmp_path: Path, command: str, place: str) -> None:
    code, out, err = planner(command, *SMALL, "--html", str(tmp_path / place))
    assert (code, out) == (6, "")
    assert "cannot write" in err
    assert "try: " in err


def test_folder_that_cannot_be_made_is_said_to_be_so(planner: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = planner("what-if", *SMALL, "--svg", str(tmp_path / "file"))
    assert code == 6
    assert "cannot write pictures to" in err


@pytest.mark.parametrize("flag", ["--html", "--svg", "--png"])
def test_what_draws_is_asked_for_before_anything_is_computed(
    planner: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flag: str
) -> None:
    monkeypatch.setattr("planner.extras.find_spec", lambda _name: None)
    code, out, err = planner("what-if", *SMALL, flag, str(tmp_path / "out"))
    assert (code, out) == (2, "")
    assert f"{flag} needs plotly" in err
    assert "pip install 'draftstream[report]'" in err


def test_tables_load_nothing_that_draws() -> None:
    script = (
        "import sys; sys.argv = ['planner', 'what-if', *sys.argv[1:]]\n"
        "from planner.cli import app\n"
        "app(standalone_mode=False)\n"
        "print([name for name in ('plotly', 'matplotlib', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script, *SMALL], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# --- bad input ---


def test_profile_of_another_schema_version_is_refused_with_the_reason(planner: Run, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    profile().write(path)
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2', 1))
    code, out, err = planner("what-if", str(path), "--html", str(tmp_path / "page.html"))
    assert (code, out) == (3, "")
    assert "schema version is 2" in err
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "texts"),
    [
        (("--machine", "rtx-409", "--target", "llama-3.1-70b"), 3, ("rtx-4090",)),
        (("--machine", "rtx-4090", "--machine", "rtx-409", *SMALL[2:]), 3, ("rtx-4090",)),
        (("--machine", "rtx-4090", "--machine", "rtx-5090"), 2, ("--target",)),
        (("absent.json",), 3, ("absent.json",)),
        ((*SMALL, "--device-memory", "12"), 2, ("12GiB",)),
        ((*SMALL, "--device-memory", "1GiB"), 4, ("short", "--device")),
        ((*SMALL, "-c", "100"), 2, ("--ctx-size 768",)),
    ],
)
def test_what_cannot_be_asked_says_what_can(
    planner: Run, arguments: tuple[str, ...], code: int, texts: tuple[str, ...]
) -> None:
    found, out, err = planner("what-if", *arguments)
    assert (found, out) == (code, "")
    assert all(text in err for text in texts), err


def test_view_is_that_of_the_first_machine_that_runs_it(planner: Run) -> None:
    code, out, _ = planner("what-if", "--machine", "rtx-3070", "--machine", "h200", "--target", "llama-3.1-405b")
    assert code == 0
    assert out.startswith("llama-3.1-405b on ")
    assert WhatIf(Situation(profile=profile(), request=request(80 * MB))).case().curve is not None
