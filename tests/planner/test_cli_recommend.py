"""`planner recommend` on the command line: its answers, its refusals with their exit codes, and what they offer."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from made_up import LINK, MB, profile, replaced, request
from test_compare import PREDICTED, report

from planner.cli import main
from planner.contracts.performance import Performance
from planner.contracts.plan import Plan
from planner.contracts.profile import Profile
from planner.contracts.quantities import format_tokens_per_s
from planner.contracts.recommendation import Recommendation
from planner.recommend import recommend
from planner.render import command_line, compared_row, facts, interval, speed

LARGE = ("--machine", "rtx-4090", "--target", "llama-3.1-70b", "--draft", "llama-3.2-1b", "--text", "code")
SMALL = ("--machine", "rtx-4090", "--target", "llama-3.2-3b")

REPORT = report(PREDICTED)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def planner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `planner` in this process; its exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["planner", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        assert isinstance(stop.value.code, int)
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return run


def test_the_answer_comes_first_and_the_line_to_paste_last(planner: Run, tmp_path: Path) -> None:
    code, out, err = planner("recommend", *LARGE, "-o", str(tmp_path / "plan.json"))
    assert (code, err) == (0, "")
    lines = out.rstrip().splitlines()
    assert re.match(r"speculate: \d+\.\d\d tok/s \(P10-P90 \d+\.\d\d-\d+\.\d\d\)", lines[0])
    assert re.fullmatch(
        r"runtime generate -m llama-3.1-70b --device-memory 23552MiB --ctx-size 768 -md llama-3.2-1b "
        r"--draft-kind tree --draft-tree \d+ --max-tokens 256 --file prompt.txt",
        lines[-1],
    )
    positions = [out.index(title) for title in ("why", "runner-up", "where speculation pays", "what more would give")]
    assert positions == sorted(positions)


def test_estimates_say_so_and_are_wide(planner: Run, tmp_path: Path) -> None:
    _, out, _ = planner("recommend", *LARGE, "-o", str(tmp_path / "plan.json"))
    assert "estimated for rtx-4090 from its catalogue entry; nothing was measured" in out
    assert "no acceptance is published for llama-3.2-1b on code: a similar pair's was taken" in out
    plan = Plan.read(tmp_path / "plan.json")
    ends = [entry.generated_tokens_per_s for entry in (plan.predicted_p10, plan.predicted, plan.predicted_p90) if entry]
    low, middle, high = (end for end in ends if end is not None)
    assert (high - low) / middle > 0.4


def test_json_is_one_document(planner: Run) -> None:
    code, out, _ = planner("recommend", *SMALL, "--json")
    assert code == 0
    assert Recommendation.model_validate_json(out).answer == "do not stream, it fits"


def test_several_machines_are_compared_in_a_table(planner: Run) -> None:
    code, out, _ = planner("recommend", "--machine", "rtx-5090", *LARGE)
    assert code == 0
    rows = [line.split()[0] for line in out.splitlines() if line.startswith("rtx-")]
    assert rows == ["rtx-5090", "rtx-4090"]
    documents = json.loads(planner("recommend", "--machine", "rtx-5090", *LARGE, "--json")[1])
    assert [entry["basis"].split()[2] for entry in documents] == ["rtx-5090", "rtx-4090"]


def test_drafts_are_compared_with_none_at_all(planner: Run) -> None:
    _, out, _ = planner("recommend", *LARGE, "--draft", "llama-3.1-8b", "--compare")
    rows = [line.split("   ")[0].strip() for line in out.splitlines()[1:4]]
    assert rows == ["no draft", "llama-3.2-1b", "llama-3.1-8b"]


def test_explain_lists_every_length_and_every_source(planner: Run) -> None:
    _, out, _ = planner("recommend", *LARGE, "--explain")
    for text in ("times no draft", "host weights", "source: compute: estimated by the roofline"):
        assert text in out


def test_a_plan_without_a_name_goes_to_the_cache(planner: Run) -> None:
    _, out, _ = planner("recommend", *SMALL)
    path = Path(out.split("the plan for that machine: ")[1].split(";")[0])
    assert Plan.read(path).target.name == "llama-3.2-3b"


@pytest.mark.parametrize(
    ("arguments", "code", "texts"),
    [
        (("--machine", "rtx-409", "--target", "llama-3.1-70b"), 3, ("rtx-4090",)),
        (("--machine", "rtx-4090", "--target", "llama-3.1-7b"), 3, ("llama-3.1-70b", "did you mean")),
        (("--machine", "rtx-4090"), 2, ("--target llama-3.1-70b",)),
        (("--machine", "rtx-4090", "--target", "llama-3.1-70b", "--draft", "qwen3-0.6b"), 3, ("tokenizer",)),
        ((*SMALL, "--device-memory", "12"), 2, ("12GiB",)),
        ((*SMALL, "--device-memory", "80GiB"), 2, ("--device-memory up to",)),
        ((*SMALL, "--ctx-size", "300"), 2, ("--ctx-size 768",)),
        ((*SMALL, "--prompt-tokens", "200000"), 2, ("was made for at most",)),
        ((*SMALL, "--link", "wire"), 2, ("emulated:2GB/s",)),
        ((*SMALL, "--prompt-tokens", "0"), 2, ("prompt-tokens",)),
        ((*SMALL, "--draft-len", "65"), 2, ("draft-len",)),
        (("--machine", "rtx-4090", "--target", "llama-3.1-70b", "--resident-only"), 4, ("short", "drop --resident")),
        ((*SMALL, "--device-memory", "500MiB", "--slots", "16"), 4, ("16 slots", "--slots 1")),
        (("--machine", "rtx-4090", "--target", "llama-3.1-70b", "--device-memory", "2GiB"), 4, ("short", "--device")),
        (("absent.json",), 3, ("absent.json",)),
        (("absent.json", *SMALL), 2, ("a profile and a machine",)),
        ((*SMALL, "--calibrate", "absent.json"), 3, ("absent.json",)),
        ((*SMALL, "--link", "disk"), 2, ("does not compute over the link disk",)),
        ((*SMALL, "--machine", "rtx-5090", "-o", "plan.json"), 2, ("--out holds one plan",)),
    ],
)
def test_what_cannot_be_planned_says_what_would(
    planner: Run, arguments: tuple[str, ...], code: int, texts: tuple[str, ...]
) -> None:
    found, out, err = planner("recommend", *arguments)
    assert (found, out) == (code, "")
    assert all(text in err for text in texts), err


def test_what_no_flag_could_give_is_not_offered(planner: Run) -> None:
    _, _, err = planner("recommend", "--machine", "rtx-3060-12gb", "--target", "qwen2.5-coder-14b", "--resident-only")
    assert "a device with 28." in err
    assert "this one has 12.00 GiB" in err
    assert "--device-memory" not in err


def test_what_a_headroom_withholds_is_given_back(planner: Run) -> None:
    _, _, err = planner("recommend", *SMALL, "--headroom", "23.8GiB")
    flags = err.split("try: ")[1].split(", or")[0].replace(" and ", " ").split()
    assert "--headroom" in flags
    assert planner("recommend", *SMALL, *flags)[0] == 0


def test_a_draft_that_may_not_take_its_memory_is_not_said_to_lose(planner: Run) -> None:
    code, out, _ = planner("recommend", *SMALL, "--draft", "llama-3.2-1b", "--draft-memory", "1MiB")
    assert code == 0
    assert "no draft pays" not in out
    assert "llama-3.2-1b cannot draft here: the draft needs" in out


def test_without_any_profile_the_way_to_one_is_named(planner: Run) -> None:
    code, _, err = planner("recommend")
    assert code == 3
    assert "try: planner profile" in err


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A profile of another machine and of other versions."""
    path = tmp_path / "profile.json"
    profile(versions={"torch": "1.0"}).write(path)
    return path


def test_a_profile_of_another_machine_is_refused_unless_forced(planner: Run, elsewhere: Path) -> None:
    code, _, err = planner("recommend", str(elsewhere))
    assert code == 5
    for text in ("it is of made up, which is not this machine", "torch 1.0 there", "--force"):
        assert text in err
    sizes = ("--device-memory", "80MB", "--prompt-tokens", "64", "-n", "64", "--link", "emulated:1GB/s")
    code, out, _ = planner("recommend", str(elsewhere), "--force", *sizes)
    assert code == 0
    assert "measured on made up" in out


def test_a_draft_that_the_profile_does_not_know_is_refused(planner: Run, elsewhere: Path) -> None:
    code, _, err = planner("recommend", str(elsewhere), "--force", "--draft", "other")
    assert code == 3
    assert "it was measured with draft" in err


def test_another_precision_than_the_profiles_is_refused(planner: Run, elsewhere: Path) -> None:
    code, _, err = planner("recommend", str(elsewhere), "--force", "--dtype", "fp32")
    assert code == 5
    assert "planner profile --dtype fp32" in err


def test_a_profile_below_the_quality_floor_is_refused(planner: Run, tmp_path: Path) -> None:
    made = profile()
    wide = made.target.model_copy(update={"stored_dtype": "fp32"})
    made.model_copy(update={"target": wide}).write(tmp_path / "profile.json")
    sizes = ("--device-memory", "80MB", "--prompt-tokens", "64", "-n", "64", "--link", "emulated:1GB/s")
    arguments = (str(tmp_path / "profile.json"), "--force", *sizes)
    code, _, err = planner("recommend", *arguments)
    assert code == 5
    assert "below the quality floor" in err
    assert planner("recommend", *arguments, "--quality-floor", "16bit")[0] == 0


def test_a_damaged_profile_is_named(planner: Run, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(profile().to_json()[:-200])
    code, _, err = planner("recommend", str(path))
    assert code == 3
    assert "is no valid Profile file" in err
    assert Profile.__name__ in err


def test_a_machine_that_cannot_run_it_is_a_line_of_the_comparison(planner: Run) -> None:
    machines = ("--machine", "h200", "--machine", "rtx-4090")
    code, out, _ = planner("recommend", *machines, "--target", "llama-3.1-70b", "--resident-only")
    assert code == 0
    assert re.search(r"^h200 .* 80/80", out, flags=re.MULTILINE)
    assert re.search(r"^rtx-4090: llama-3.1-70b does not fit without streaming", out, flags=re.MULTILINE)


def test_the_line_to_paste_says_how_the_plan_was_meant() -> None:
    plan = recommend(profile(), replaced(request(80 * MB, link=LINK))).plan
    line = command_line(plan, Path("my plans/plan.json"), is_sampled=True, num_threads=2)
    assert line == (
        "runtime generate --plan 'my plans/plan.json' --max-tokens 64 --temp 1 --threads 2 --file prompt.txt"
    )


def test_a_report_of_another_target_does_not_calibrate(planner: Run, elsewhere: Path, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(REPORT.to_json())
    sizes = ("--device-memory", "80MB", "--prompt-tokens", "64", "-n", "64", "--link", "emulated:1GB/s")
    code, _, err = planner("recommend", str(elsewhere), "--force", *sizes, "--calibrate", str(tmp_path / "report.json"))
    assert code == 3
    assert "it is of another target" in err


def test_what_nobody_predicted_is_unknown_and_not_zero() -> None:
    found = recommend(profile(), request(80 * MB))
    assert speed(found.plan) == f"{format_tokens_per_s(found.choice.tokens_per_s)} ({interval(found.plan)})"
    bare = Performance()
    plan = found.plan.model_copy(update={"predicted": bare, "predicted_p10": bare, "predicted_p90": bare})
    assert speed(plan) == "speed unknown (P10-P90 unknown)"
    assert "(P10-P90 unknown) after a prompt" in dict(facts(plan, found.choice))["first token"]
    assert compared_row("m", found.model_copy(update={"plan": plan}))[1].endswith(" (unknown)")


def test_a_folder_of_reports_calibrates_by_those_that_fit(planner: Run) -> None:
    examples = Path(__file__).parents[2] / "notebooks" / "examples"
    arguments = (str(examples / "profile.json"), "--force", "--device-memory", "13MiB", "--link", "emulated:300MB/s")
    code, out, err = planner("recommend", *arguments, "--calibrate", str(examples / "reports"), "--json")
    assert (code, err) == (0, "")
    assert Recommendation.parse(out.encode(), "stdout").basis.endswith("; corrected by 7 runs")
    code, _, err = planner("recommend", *arguments, "--calibrate", str(examples))
    assert code == 3
    assert "no report in" in err
    assert "profile.json: " in err
