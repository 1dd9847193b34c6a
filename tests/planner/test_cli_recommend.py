"""`planner recommend` on the command line: its answers, its refusals with their exit codes, and what they offer."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from made_up import LINK, MB, profile, replaced, request
from test_compare import PREDICTED, performance, report
from typer.core import TyperGroup

from planner.cli import main
from planner.contracts.performance import Performance
from planner.contracts.plan import Plan
from planner.contracts.profile import Profile
from planner.contracts.quantities import format_tokens_per_s
from planner.contracts.recommendation import Recommendation
from planner.recommend import recommend
from planner.render import command_line, compared_row, facts, interval, speed
from runtime.cli import app as runtime_app

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
        r"runtime generate -m llama-3.1-70b --dtype bf16 --link cuda --device-memory 23552MiB --ctx-size 768 "
        r"--slots \d -md llama-3.2-1b --draft-kind tree --draft-tree \d+ --max-tokens 256 --file prompt.txt",
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
        ((*SMALL, "--text", "banana"), 3, ("no text 'banana'", "chat, code, edit, general, math, prose")),
        ((*SMALL, "--draft", "llama-3.2-1b", "--text", "Code"), 3, ("no text 'Code'", "chat, code")),
        ((*SMALL, "--headroom", "0"), 2, ("12GiB",)),
        ((*SMALL, "--device-memory", "0GiB"), 2, ("between one byte",)),
        (("one.json", "two.json"), 2, ("2 profiles: one.json, two.json", "--calibrate")),
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


@pytest.mark.parametrize("size", ["0GiB", "0B", "0.0MB"])
def test_no_headroom_at_all_is_a_headroom(planner: Run, tmp_path: Path, size: str) -> None:
    path = tmp_path / "plan.json"
    assert planner("recommend", *SMALL, "--headroom", size, "-o", str(path))[0] == 0
    assert Plan.read(path).devices[0].budget_bytes == 24 * 2**30


@pytest.mark.parametrize("text", ["math", "edit"])
def test_every_text_that_is_offered_is_planned_for(planner: Run, text: str) -> None:
    assert planner("recommend", *SMALL, "--draft", "llama-3.2-1b", "--text", text)[0] == 0


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


# --- the line to paste, for models that are known by name only ---


def parsed(line: str) -> dict[str, object]:
    """The options of a line to paste, as the runtime's own command line reads them."""
    program, command, *words = shlex.split(line)
    assert (program, command) == ("runtime", "generate")
    group = typer.main.get_command(runtime_app)
    assert isinstance(group, TyperGroup)
    return group.commands[command].make_context(command, words).params


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--draft-len", "5", "--slots", "3"),
        ("--draft-tiers", "1,3,7"),
        ("--draft-kind", "tree", "--draft-tree", "32", "--device-memory", "12GiB"),
        ("--draft-on-host", "--draft-kind", "chain"),
        ("--no-spec", "--host-memory", "24GiB", "--ctx-size", "4096", "--max-tokens", "100"),
        ("--target-memory", "10GiB", "--draft-memory", "3GiB"),
        ("--link", "emulated:12.5GB/s,10us", "--dtype", "fp16", "--quality-floor", "16bit"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("machine", ["rtx-4090", "epyc-9354"])
def test_the_line_to_paste_plans_the_same(planner: Run, tmp_path: Path, flags: tuple[str, ...], machine: str) -> None:
    pair = ("--target", "llama-3.1-70b", "--draft", "llama-3.2-1b", "--text", "code")
    where = ("--machine", machine)
    code, out, err = planner("recommend", *where, *pair, *flags, "-o", str(tmp_path / "first.json"))
    assert code == 0, err
    options = parsed(out.rstrip().splitlines()[-1])
    again = [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if _is_given(value)]
    again += [name for name, flag in (("--no-spec", "no_spec"), ("--draft-on-host", "draft_on_host")) if options[flag]]
    floor = ("--quality-floor", "16bit") if "--quality-floor" in flags else ()
    code, _, err = planner("recommend", *where, "--text", "code", *floor, *again, "-o", str(tmp_path / "second.json"))
    assert code == 0, err
    first, second = (_in_whole_mib(Plan.read(tmp_path / name)) for name in ("first.json", "second.json"))
    assert first == second


def _in_whole_mib(plan: Plan) -> Plan:
    """The plan with budgets as a line to paste rounds them."""
    devices = [device.model_copy(update={"budget_bytes": device.budget_bytes >> 20 << 20}) for device in plan.devices]
    return plan.model_copy(update={"devices": tuple(devices)})


def _is_given(value: object) -> bool:
    """Whether an option says something that planning goes by; `recommend` spells it as `generate` does."""
    return isinstance(value, str | int) and not isinstance(value, bool)


# --- learning from runs ---

SIZES = ("--device-memory", "80MB", "--prompt-tokens", "64", "-n", "64", "--link", "emulated:1GB/s")


def written_reports(folder: Path, *links_s: float) -> list[str]:
    """Reports of runs of the made-up target whose link took so long where 0.4 s were predicted."""
    paths = []
    for number, link_s in enumerate(links_s):
        path = folder / f"run-{number}.json"
        made = report(performance(round_s=link_s, link_s=link_s))
        target = made.target.model_copy(update={"fingerprint": profile().target.fingerprint})
        path.write_text(made.model_copy(update={"target": target}).to_json())
        paths.append(str(path))
    return paths


def planned(planner: Run, path: Path, *arguments: str) -> Plan:
    code, out, err = planner("recommend", str(path), "--force", *SIZES, "--no-spec", "--json", *arguments)
    assert code == 0, err
    return Recommendation.model_validate_json(out).plan


def width_frac(plan: Plan) -> float:
    ends = [entry.generated_tokens_per_s for entry in (plan.predicted_p10, plan.predicted, plan.predicted_p90) if entry]
    low, middle, high = (end for end in ends if end is not None)
    return (high - low) / middle


def test_several_reports_move_the_prediction_and_its_interval(planner: Run, elsewhere: Path, tmp_path: Path) -> None:
    reports = written_reports(tmp_path, 0.44, 0.48, 0.52)  # the link took 1.1, 1.2, 1.3 times as long as predicted
    before = planned(planner, elsewhere)
    after = planned(planner, elsewhere, "--calibrate", *reports)
    # The median of three counts for three against none at all: 1.2 ** (3 / 4)
    assert after.calibration["link"] == pytest.approx(1.2**0.75)
    assert before.predicted.generated_tokens_per_s is not None
    assert after.predicted.generated_tokens_per_s == pytest.approx(
        before.predicted.generated_tokens_per_s / 1.2**0.75, rel=1e-3
    )
    assert width_frac(after) > 2 * width_frac(before), "the runs scatter by far more than an emulated link should"
    one_by_one = [word for path in reports for word in ("--calibrate", path)]
    assert planned(planner, elsewhere, *one_by_one) == after
    few = planned(planner, elsewhere, "--calibrate", reports[1])
    assert few.calibration["link"] == pytest.approx(1.2**0.5)


def test_what_is_no_report_does_not_calibrate(planner: Run, elsewhere: Path, tmp_path: Path) -> None:
    (run,) = written_reports(tmp_path, 0.44)
    for arguments, code, text in (
        (("--calibrate", str(elsewhere)), 3, f"{elsewhere} is no valid Report file"),
        (("--calibrate", run, str(tmp_path / "absent.json")), 3, "absent.json"),
        (("--calibrate", run, str(elsewhere)), 2, "2 profiles"),
        ((run,), 2, "reports of runs follow --calibrate"),
    ):
        found, _, err = planner("recommend", str(elsewhere), "--force", *SIZES, *arguments)
        assert (found, text in err) == (code, True), err
    found, _, err = planner("recommend", run)
    assert found == 3
    assert f"try: planner recommend --calibrate {run}" in err
    found, _, err = planner("recommend", str(elsewhere), "--force", *SIZES[:-1], "disk:cached", "--calibrate", run)
    assert found == 3
    assert "it ran over the link emulated" in err


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
