"""A whole profile of a tiny pair: complete, found again by what it holds for, and refused input by name."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
import typer
from tiny_models import TinyModel
from typer.testing import CliRunner

from planner.budget import Budget
from planner.cli.profile import profile as profile_command
from planner.cli.progress import progress_bar
from planner.contracts.errors import BadInputError, ResourceFailureError, UsageError
from planner.contracts.model_folder import open_model_folder
from planner.contracts.model_shape import ModelShape
from planner.contracts.plan import CudaLink, Workload
from planner.contracts.profile import LinkMeasurement, MemoryMeasurement, Profile, Spread
from planner.recommend import recommend
from planner.search import request_for
from runtime.measure import profile as profile_module
from runtime.measure.bench import Bench, Subject
from runtime.measure.cache import find_profile, profile_path
from runtime.measure.profile import ProfileOptions, measure_profile, profile_key, stored_path
from runtime.measure.prompts import Prompt, read_prompts, round_robin
from runtime.measure.session import GROUPS, Progress
from runtime.measure.steps import all_steps

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = [Prompt(domain=domain, text=f"{domain} of x and y") for domain in ("code", "prose")]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("DRAFTSTREAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def quick(**changes: object) -> ProfileOptions:
    return ProfileOptions(**{"is_quick": True, "is_forced": True, "prompt_tokens": 16, "new_tokens": 12, **changes})  # type: ignore[arg-type]


@pytest.mark.slow
def test_quick_profile_is_complete_and_found_again(tiny_model: TinyModel, tmp_path: Path) -> None:
    target, draft = tiny_model("llama"), tiny_model("llama", noise=0.3)
    out = tmp_path / "out.json"
    seen: list[Progress] = []
    options = quick(out=out, links=("emulated:1GB/s",))
    profile = measure_profile(target, [draft], options, PROMPTS, seen.append)
    assert [progress.num_done for progress in seen] == list(range(seen[0].num_steps)), "every step, once"
    assert {progress.num_steps for progress in seen} == {len({progress.step for progress in seen})}
    assert [group for group in GROUPS if any(progress.group == group for progress in seen)] == [
        group for group in GROUPS if group != "memory"
    ]
    for step in ("disk cached", "streamed over emulated:1GB/s", "n-grams", f"{draft}, reading a prompt", "code 0"):
        assert step in {progress.step for progress in seen}
    assert {entry.link for entry in profile.links} == {"disk:cached", "disk:direct", "host_memory"}
    parts = {"layer", "attention", "mlp", "head_chunk"}
    beside = ("round", "tree_round", "ngram")
    assert {row.unit for row in profile.compute} == {*parts, "pass", "edge", "embedding", *beside}
    assert {row.num_tokens for row in profile.draft_passes} >= {1, 2}
    assert [recording.domain for recording in profile.acceptance] == ["code", "code", "prose", "prose"]
    assert Profile.read(out) == profile
    assert find_profile(profile_key(target, [draft])) == profile
    assert find_profile(profile_key(target)) == profile, "a profile with a draft serves to plan without one"
    assert find_profile(profile_key(target, [draft], num_threads=63)) is None
    assert find_profile(profile_key(tiny_model("qwen3"))) is None
    assert stored_path(profile, options).exists()
    assert not list((tmp_path / "cache").glob("*.journal")), "a complete run leaves no journal"


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    for out in (tmp_path / "missing" / "profile.json", tmp_path):
        with pytest.raises(ResourceFailureError, match=f"cannot write {out}"):
            measure_profile("no model, which would be next", [], quick(out=out), PROMPTS)


def test_profile_of_one_group_names_the_others_and_serves_nobody(tiny_model: TinyModel) -> None:
    target = tiny_model("llama")
    profile = measure_profile(target, [], quick(only=("acceptance",)), PROMPTS)
    assert len(profile.acceptance) == 2
    assert "links: not measured, left out by --only" in profile.notes
    assert find_profile(profile_key(target)) is None


def test_run_out_of_time_leaves_its_journal_and_is_taken_up(tiny_model: TinyModel, cache: Path) -> None:
    target = tiny_model("llama")
    options = quick(only=("acceptance",), max_seconds=1e-9)
    cut = measure_profile(target, [], options, PROMPTS)
    assert cut.acceptance == ()
    assert "acceptance: 2 of 2 steps not measured for lack of time" in cut.notes
    assert list(cache.glob("*.journal"))
    assert cut.num_steps_missing == 2
    whole = measure_profile(target, [], quick(only=("acceptance",)), PROMPTS)
    assert len(whole.acceptance) == 2
    assert whole.num_steps_missing == 0


def test_a_run_cut_short_does_not_replace_what_lacks_less(tiny_model: TinyModel, tmp_path: Path) -> None:
    target, out = tiny_model("llama"), tmp_path / "out.json"
    whole = measure_profile(target, [], quick(only=("acceptance",)), PROMPTS)
    options = quick(only=("acceptance",), max_seconds=1e-9, out=out)
    cut = measure_profile(target, [], options, PROMPTS)
    assert Profile.read(stored_path(cut, options)) == whole
    assert Profile.read(out) == cut, "the file named is of this run"
    assert "acceptance: 2 of 2 steps not measured for lack of time" in cut.notes
    assert cut.notes[-1].startswith(f"the cache keeps the profile of {whole.created[:10]}")
    assert "lacks none of the steps, while this run lacks 2" in cut.notes[-1]


def test_a_whole_quick_profile_serves_before_a_full_one_that_was_cut_short(tiny_model: TinyModel) -> None:
    key = profile_key(tiny_model("llama"), num_threads=1)
    measured = measure_profile(tiny_model("llama"), [], quick(only=("acceptance",)), PROMPTS)
    lacking = {
        variant: measured.model_copy(update={"num_steps_missing": num_missing, "notes": (variant,)})
        for variant, num_missing in (("full", 7), ("quick", 3))
    }
    lacking["full"].write(profile_path(key))
    assert find_profile(key) == lacking["full"], "better than none"
    lacking["quick"].write(profile_path(key, "quick"))
    assert find_profile(key) == lacking["quick"]
    whole = measured.model_copy(update={"notes": ("whole",)})
    whole.write(profile_path(key, "quick"))
    assert find_profile(key) == whole
    full = measured.model_copy(update={"notes": ("full",)})
    full.write(profile_path(key))
    assert find_profile(key) == full


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "0", "-3"])
def test_a_deadline_that_is_no_number_is_refused_before_anything_is_measured(number: str, cache: Path) -> None:
    app = typer.Typer()
    app.command()(profile_command)
    result = CliRunner().invoke(app, ["--quick", "--max-seconds", number])
    code = result.exception.exit_code if isinstance(result.exception, UsageError) else result.exit_code
    assert code == 2
    assert not cache.exists()


# --- a device beside the CPU ---


def device_steps(folder: Path, *, is_quick: bool) -> dict[str, list[str]]:
    """The names of all steps, by group, of a target with one draft on a machine with a CUDA device."""
    shape = ModelShape.from_config(folder)
    subject = Subject(
        target_name="target",
        target=open_model_folder(folder),
        target_shape=shape,
        draft_names=("draft",),
        drafts=(open_model_folder(folder),),
        draft_shapes=(shape,),
        dtype="bf16",
        device=torch.device("cuda:0"),
        links=("emulated:2GB/s",),
        context_tokens=2048,
        prompts=(),
        prompt_tokens=256,
        new_tokens=128,
        keeps_text=False,
        is_quick=is_quick,
        stop_at_s=0.0,
    )
    cached = SimpleNamespace(can_roll_back=True, why_no_trees=None)
    bench = SimpleNamespace(subject=subject, twin=lambda _: SimpleNamespace(cached=cached))
    found: dict[str, list[str]] = {}
    for step in all_steps(cast(Bench, bench)):
        found.setdefault(step.group, []).append(step.name)
    return found


def test_the_cpu_beside_a_device_is_measured_at_the_same_contexts_as_the_device(tiny_model: TinyModel) -> None:
    for is_quick, contexts in ((False, (128, 1024, 1984)), (True, (128, 1024))):
        names = device_steps(tiny_model("llama"), is_quick=is_quick)["compute"]
        for context_tokens in contexts:
            assert f"resident after {context_tokens} tokens" in names
            assert f"on the CPU after {context_tokens} tokens" in names


def test_a_draft_is_measured_on_the_cpu_beside_a_device_too(tiny_model: TinyModel) -> None:
    names = device_steps(tiny_model("llama"), is_quick=False)["rounds"]
    for state in ("resident after 128 tokens", "streamed over own link after 128 tokens", "resident after 1536 tokens"):
        assert f"draft, {state}" in names
        assert f"draft on the CPU, {state}" in names
    assert "draft on the CPU, reading a prompt" in names


def test_links_of_a_device_are_measured_pinned_and_pageable_in_both_directions_alone_and_loaded(
    tiny_model: TinyModel,
) -> None:
    names = device_steps(tiny_model("llama"), is_quick=True)["links"]
    paths = ("cuda", "cuda:pageable", "cuda:device_to_host", "cuda:pageable_device_to_host")
    assert {name for name in names if name.startswith("cuda")} == {
        f"{path}{suffix}" for path in paths for suffix in ("", ", loaded")
    }


@pytest.mark.slow
def test_a_profile_of_a_device_prices_a_draft_on_the_host_and_the_cpu_as_a_rival(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A CPU by another name stands in for the device: all is measured but its link, which is made up.
    as_on_cpu = profile_module._subject
    monkeypatch.setattr(Subject, "has_host_beside", True)
    monkeypatch.setattr(
        profile_module, "_subject", lambda *args: replace(as_on_cpu(*args), device=torch.device("cpu:0"))
    )
    target, draft = tiny_model("llama"), tiny_model("llama", noise=0.3)
    measured = measure_profile(target, [draft], quick(), PROMPTS)
    on_host = [row for row in measured.compute if row.processor == "host"]
    assert {row.unit for row in on_host} >= {"layer", "head_chunk", "pass"}
    assert {row.processor for row in measured.draft_passes} == {"device", "host"}
    rounds = [
        (row.unit, row.num_tokens, row.load_bytes_per_s) for row in measured.compute if row.unit.endswith("round")
    ]
    assert len(rounds) == len(set(rounds)), "what a round takes beside its draft is measured once"
    copies = LinkMeasurement(
        link="cuda", num_bytes=2**20, loaded=False, duration_s=Spread(p25=1e-3, median=1e-3, p75=1e-3, num_samples=9)
    )
    profile = measured.model_copy(update={"links": (*measured.links, copies)})
    layer_bytes = profile.target.layers[0].region_bytes(profile.dtype)
    for draft_on_host in (False, True):
        request = request_for(
            profile,
            Budget(device_bytes=2**30, host_bytes=2**40),
            CudaLink(),
            "cuda:0",
            Workload(prompt_tokens=64, new_tokens=64),
            draft_on_host=draft_on_host,
        )
        whole = recommend(profile, replace(request, never_speculate=True)).plan.memory.device_bytes
        tighter = (replace(request.budget, target_bytes=whole - count * layer_bytes // 2) for count in range(1, 9))
        answers = (recommend(profile, replace(request, budget=budget)) for budget in tighter)
        found = next(answer for answer in answers if answer.plan.slots)
        rivals = {(rival.name, rival.draft) for rival in found.rivals}
        assert rivals >= {("CPU layers", None), ("CPU layers", str(draft))}
        assert found.unpriced_rivals == ()
        assert not any(refusal.draft == str(draft) for refusal in found.refused)


# --- killed ---


@pytest.mark.slow
def test_a_profiler_that_is_killed_leaves_a_whole_journal_which_the_next_one_takes_up(
    tiny_model: TinyModel, tmp_path: Path, cache: Path
) -> None:
    target = tiny_model("llama")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("A paragraph that is long enough.\n", encoding="utf-8")
    command = [sys.executable, "-c", "from planner.cli import main; main()", "profile", str(target)]
    command += ["--prompts", str(prompts), "--threads", "1", "--force", "--quick"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as profiler:
        deadline_s = time.monotonic() + 60
        while not (journals := list(cache.glob("*.journal"))) or journals[0].read_bytes().count(b'"step"') < 5:
            assert profiler.poll() is None
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        profiler.kill()
    lines = journals[0].read_bytes().split(b"\n")
    taken = {json.loads(line)["step"] for line in lines[1:-1]} - {"sentinel"}
    assert len(taken) >= 2
    seen: list[Progress] = []
    options = ProfileOptions(is_quick=True, is_forced=True, num_threads=1)
    profile = measure_profile(str(target), [], options, read_prompts(prompts), seen.append)
    assert not taken & {progress.step for progress in seen}, "what is in the journal is not measured again"
    assert {*taken, *(progress.step for progress in seen)} >= {"disk cached", "n-grams", "own 0"}
    assert len(taken) + len(seen) == seen[0].num_steps
    assert profile.num_steps_missing == 0
    assert not list(cache.glob("*.journal"))


def test_damaged_file_in_the_cache_counts_as_absent(tiny_model: TinyModel) -> None:
    key = profile_key(tiny_model("llama"))
    profile_path(key).write_text("{", encoding="utf-8")
    assert find_profile(key) is None


@pytest.mark.slow
def test_command_prints_a_summary_and_where_the_profile_is(tiny_model: TinyModel, cache: Path) -> None:
    target, draft = tiny_model("llama"), tiny_model("llama", noise=0.3)
    prompts = cache.parent / "prompts.txt"
    prompts.write_text("A paragraph that is long enough.\n", encoding="utf-8")
    app = typer.Typer()
    app.command()(profile_command)
    arguments = [str(target), "-md", str(draft), "--prompts", str(prompts), "--quick", "--force", "--threads", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert Path(lines[0].removeprefix("profile: ")).exists()
    for start in ("machine: ", "link disk:cached: ", "layer 0 and alike: ", f"draft {draft}: ", "own: ", "drift: "):
        assert any(line.startswith(start) for line in lines), (start, lines)
    as_json = CliRunner().invoke(app, [*arguments, "--only", "acceptance", "--json"])
    assert Profile.model_validate_json(as_json.stdout).acceptance


def test_the_bar_says_which_step_runs_and_how_many_are_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for is_terminal in (False, True):
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setenv("TERM", "xterm")
        if is_terminal:
            monkeypatch.setenv("FORCE_COLOR", "1")
        with progress_bar("profile") as show:
            show("links: disk cached", 0, 9)
            show("compute: resident after 128 tokens", 3, 9)
        shown = capsys.readouterr()
        assert shown.out == ""
        assert ("compute: resident after 128 tokens" in shown.err) == is_terminal
        assert ("3/9" in shown.err) == is_terminal


def test_context_longer_than_the_models_own_is_refused(tiny_model: TinyModel) -> None:
    with pytest.raises(UsageError, match="cannot be profiled"):
        measure_profile(tiny_model("llama"), [], quick(context_tokens=10_000), PROMPTS)


def test_draft_of_a_model_that_cannot_roll_back_is_refused_before_anything_is_measured(tiny_model: TinyModel) -> None:
    with pytest.raises(BadInputError, match="cannot speculate"):
        measure_profile(tiny_model("bamba"), [tiny_model("llama")], quick(), PROMPTS)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "no prompts"),
        (b"\n \n\n", "no prompts"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "cannot read the prompts"),
        (b"some text\0and more of it", "NUL"),
        (b'{"domain": "code"}', 'no "text"'),
        (b'{"text": "a text"', "line 1"),
        (b'{"text": "a text", "domain": 7}', "domain"),
    ],
)
def test_prompt_file_that_is_none_is_bad_input(content: bytes, match: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts"
    path.write_bytes(content)
    app = typer.Typer()
    app.command()(profile_command)
    result = CliRunner().invoke(app, ["--prompts", str(path)])
    assert isinstance(result.exception, BadInputError)
    assert result.exception.exit_code == 3
    with pytest.raises(BadInputError, match=match):
        read_prompts(path)


def test_plain_text_is_prompts_by_paragraph(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text(
        "The first paragraph,\nof two lines.\n\n\nshort\n\nThe second paragraph of all.\n", encoding="utf-8"
    )
    assert [prompt.text for prompt in read_prompts(path)] == [
        "The first paragraph,\nof two lines.",
        "The second paragraph of all.",
    ]


def test_prompts_take_turns_by_domain() -> None:
    prompts = [Prompt(domain=name[0], text=name) for name in ("a1", "a2", "a3", "b1", "c1", "c2")]
    texts = [prompt.text for prompt in round_robin(prompts, 2)]
    assert [text[0] for text in texts] == ["a", "b", "c", "a", "c"]
    assert len(set(texts)) == len(texts)


def test_prompts_are_drawn_from_the_whole_file_and_the_same_ones_again() -> None:
    prompts = [Prompt(domain="own", text=str(place)) for place in range(100)]
    drawn = round_robin(prompts, 10)
    assert drawn == round_robin(prompts, 10)
    places = sorted(int(prompt.text) for prompt in drawn)
    assert places[0] < 25
    assert places[5] < 75 <= places[-1]


def test_memory_is_measured_with_the_largest_draft(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    drafts = [tiny_model("llama"), tiny_model("mixtral")]
    sizes = [(draft / "model.safetensors").stat().st_size for draft in drafts]
    asked: list[str] = []

    def measure(_target: str, draft: str, *_: object) -> list[MemoryMeasurement]:
        asked.append(draft)
        return [MemoryMeasurement(part="host_overhead", num_bytes=1)]

    monkeypatch.setattr("runtime.measure.steps.measure_memory", measure)
    options = quick(is_quick=False, is_fresh=True, only=("memory",))
    for order in (drafts, drafts[::-1]):
        measure_profile(tiny_model("llama", seed=1), order, options, [])
    assert sizes[0] < sizes[1]
    assert asked == [str(drafts[1])] * 2
