"""`runtime generate` without a plan: by a cached profile, a named one, a quick one measured now, or memory alone."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import TinyModel, placed, recounted

from planner.contracts.model_shape import ModelShape
from planner.contracts.plan import ChainDraft, Device, Plan, TreeDraft
from planner.contracts.profile import Profile
from planner.contracts.report import Report
from runtime.api import load
from runtime.cli import main
from runtime.measure.machine import machine_fingerprint, this_machine, versions
from runtime.measure.profile import ProfileOptions, measure_profile
from runtime.measure.prompts import Prompt

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = "the quick brown fox jumps over the lazy dog"
SIZES = ("-n", "12", "--link", "emulated:2GB/s", "--json")

Run = Callable[..., tuple[int, Report | None, str]]


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `runtime generate` in this process; its exit code, report and stderr. It may measure profiles."""
    monkeypatch.delenv("DRAFTSTREAM_PROFILE")

    def run(*arguments: str) -> tuple[int, Report | None, str]:
        monkeypatch.setattr("sys.argv", ["runtime", "generate", PROMPT, *SIZES, *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return stop.value.code, Report.model_validate_json(captured.out) if captured.out else None, captured.err

    return run


@pytest.fixture(scope="module")
def measured(tiny_model: TinyModel) -> Profile:
    """A quick profile of a tiny pair, in the cache."""
    options = ProfileOptions(is_quick=True, is_forced=True, num_threads=1, prompt_tokens=24, new_tokens=24)
    prompts = [Prompt(domain="prose", text=PROMPT * 3), Prompt(domain="code", text="def f(x): return x" * 6)]
    return measure_profile(str(tiny_model("llama")), [str(tiny_model("llama", seed=1))], options, prompts)


@pytest.fixture
def pair(tiny_model: TinyModel, measured: Profile) -> tuple[str, ...]:
    """The command line's words for the pair that was measured."""
    return "-m", str(tiny_model("llama")), "-md", str(tiny_model("llama", seed=1)), "-t", "1"


@pytest.mark.slow
def test_cached_profile_plans_the_run_and_predicts_it(generate: Run, pair: tuple[str, ...]) -> None:
    code, report, err = generate(*pair)
    assert code == 0
    assert "planned by the profile of 20" in err
    assert report is not None
    assert report.plan.workload is not None
    assert report.plan.workload.new_tokens == 12
    assert report.predicted.generated_tokens_per_s
    assert "predicted (P10-P90)" in err


@pytest.mark.slow
def test_draft_length_and_slots_are_the_users_where_stated(generate: Run, pair: tuple[str, ...]) -> None:
    _, report, _ = generate(*pair, "--draft-len", "3", "--slots", "2", "--device-memory", "1100KB")
    assert report is not None
    assert isinstance(report.plan.draft, ChainDraft)
    assert (report.plan.draft.draft_len, report.plan.slots) == (3, 2)


@pytest.mark.slow
def test_no_draft_model_is_planned_where_none_was_named(generate: Run, pair: tuple[str, ...]) -> None:
    for arguments, kinds in (((*pair[:2], *pair[4:]), {"none", "ngram"}), ((*pair, "--no-spec"), {"none"})):
        _, report, err = generate(*arguments)
        assert report is not None
        assert report.plan.draft.kind in kinds
        assert "planned by the profile" in err


@pytest.mark.slow
def test_memory_alone_plans_without_predictions(generate: Run, pair: tuple[str, ...]) -> None:
    code, report, err = generate(*pair, "--profile", "none")
    assert code == 0
    assert report is not None
    assert report.predicted.generated_tokens_per_s is None
    assert "planner recommend" in err


@pytest.mark.slow
def test_what_does_not_fit_is_refused_before_anything_is_measured(generate: Run, tiny_model: TinyModel) -> None:
    code, report, err = generate("-m", str(tiny_model("qwen3")), "--device-memory", "10KB")
    assert (code, report) == (4, None)
    assert "measuring" not in err


@pytest.mark.slow
def test_named_profile_must_be_of_the_target(
    generate: Run, tiny_model: TinyModel, measured: Profile, tmp_path: Path
) -> None:
    measured.write(tmp_path / "profile.json")
    code, _, err = generate("-m", str(tiny_model("qwen3")), "--profile", str(tmp_path / "profile.json"))
    assert code == 5
    assert "the profile is not of" in err


@pytest.mark.parametrize(
    ("changes", "whys"),
    [
        ({"machine_fingerprint": "elsewhere"}, ("it is of another desk, which is not this machine",)),
        ({"versions": {**versions(), "torch": "1.0"}}, ("torch 1.0 there and ",)),
        (
            {"machine_fingerprint": "elsewhere", "versions": {}},
            ("which is not this machine", "torch unknown there", "transformers unknown there"),
        ),
    ],
    ids=["machine", "version", "both"],
)
def test_named_profile_of_another_machine_or_versions_is_refused_and_force_explained(
    generate: Run, tiny_model: TinyModel, tmp_path: Path, changes: dict[str, object], whys: tuple[str, ...]
) -> None:
    target, path = str(tiny_model("llama")), tmp_path / "profile.json"
    shape = ModelShape.from_config(tiny_model("llama"))
    here = Profile(
        kind="measured",
        created="2026-11-20T12:00:00Z",
        machine=this_machine(()).model_copy(update={"name": "another desk"}),
        machine_fingerprint=machine_fingerprint(),
        versions=versions(),
        num_threads=1,
        target=shape,
        dtype=shape.stored_dtype,
    )
    here.model_copy(update=changes).write(path)
    code, report, err = generate("-m", target, "--profile", str(path))
    assert (code, report) == (5, None)
    for text in ("was not measured here and now", *whys, f"planner recommend {path} --force", "--profile none"):
        assert text in err


@pytest.mark.slow
def test_damaged_profile_is_refused_by_name(generate: Run, pair: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text(json.dumps({"kind": "measured"}))
    code, _, err = generate(*pair, "--profile", str(tmp_path / "profile.json"))
    assert code == 3
    assert "profile.json" in err


@pytest.mark.slow
def test_first_run_of_a_model_measures_a_quick_profile_and_says_so(generate: Run, tiny_model: TinyModel) -> None:
    model = ("-m", str(tiny_model("olmo2")), "-t", "1")
    code, report, err = generate(*model)
    assert code == 0
    assert "measuring a quick one" in err
    assert report is not None
    assert report.predicted.generated_tokens_per_s
    assert "planned by the profile of" in generate(*model)[2]


@pytest.mark.slow
def test_a_static_tree_is_planned_by_the_profile_and_refused_without_one(
    generate: Run, pair: tuple[str, ...], measured: Profile, tmp_path: Path
) -> None:
    file = tmp_path / "profile.json"
    drafted = [entry.model_copy(update={"ranks": (0, 1) * (len(entry.ranks) // 2)}) for entry in measured.acceptance]
    measured.model_copy(update={"acceptance": tuple(drafted)}).write(file)
    code, report, _ = generate(*pair, "--profile", str(file), "--draft-static", "--draft-tree", "6")
    assert code == 0
    assert report is not None
    assert isinstance(report.plan.draft, TreeDraft)
    assert report.plan.draft.paths
    assert {entry.num_draft_tokens for entry in report.rounds[:1]} == {len(report.plan.draft.paths)}
    code, _, err = generate(*pair, "--profile", "none", "--draft-static")
    assert code == 2
    assert "without a profile" in err


@pytest.mark.slow
def test_model_that_cannot_be_profiled_is_planned_by_memory_and_the_reason_is_said(
    generate: Run, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from planner.contracts.errors import ResourceFailureError

    def fail(*_: object, **__: object) -> Profile:
        raise ResourceFailureError("the disk is full", why="no space", remedy="delete something")

    monkeypatch.setattr("runtime.cli.planning._measured_apart", fail)
    code, report, err = generate("-m", str(tiny_model("phi3")))
    assert code == 0
    assert report is not None
    assert "planned by memory alone, without predictions: the disk is full (no space)" in err


def drafting_on(plan: Plan, index: int) -> Plan:
    """The plan with its draft on that one of two devices, both of them the CPU."""
    assert isinstance(plan.draft, ChainDraft)
    devices = (*plan.devices, Device(name="cpu", budget_bytes=2**30))[: index + 1]
    return recounted(plan, devices=devices, draft=plan.draft.model_copy(update={"device": index}))


def test_draft_on_the_host_proposes_what_it_would_beside_the_target(tiny_model: TinyModel) -> None:
    target, draft = tiny_model("llama", "fp64"), tiny_model("llama", "fp64", noise=0.02)
    plan = placed(target, streamed_layers=(0, 2), draft=draft, dtype="fp64")
    texts = []
    for index in (0, 1):
        with load(plan=drafting_on(plan, index)) as engine:
            engine.end_tokens = frozenset()
            generation = engine.generate(tuple(range(60, 72)), max_tokens=16)
            texts.append([token.token_id for token in generation])
            assert generation.report().num_draft_tokens > 0
    assert texts[0] == texts[1]
