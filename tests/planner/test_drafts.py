"""Drafts on plain data: who is refused and why, in what order the others stand, and what the command prints of it."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import typer
from tiny_models import TinyModel
from typer.testing import CliRunner, Result

from planner.budget import Budget, Wishes
from planner.cli.drafts import drafts
from planner.contracts.errors import BadInputError, NoFeasiblePlanError
from planner.contracts.machine import Machine, MachineDevice, MachineLink, Quantity
from planner.contracts.model_shape import LayerKind, LayerShape, ModelShape, TensorGroup
from planner.contracts.plan import CudaLink, DiskLink, Workload
from planner.contracts.profile import AcceptanceCurve
from planner.drafts import (
    BY_SIZE,
    BY_SPEED,
    Candidate,
    DraftList,
    Pricing,
    PublishedPair,
    assumed_curve,
    list_drafts,
    num_params,
    why_too_big,
    why_unfit,
    without_twins,
)
from planner.estimate import estimated_profile
from planner.search import Request
from profiles import demo_folder

TARGET_FOLDER, DRAFT_FOLDER = str(demo_folder("target")), str(demo_folder("draft"))


def shape_of(name: str, num_params: int, *, kind: LayerKind = "full") -> ModelShape:
    """A model of two equal layers, and tables of a hundredth of it."""
    layer = LayerShape(tensors=(TensorGroup(num_params=num_params // 2, count=1, part="mlp"),), kind=kind)
    return ModelShape(
        name=name,
        fingerprint=name,
        model_type="llama",
        stored_dtype="bf16",
        hidden_size=64,
        intermediate_size=64,
        vocab_size=num_params // 6400,
        num_heads=4,
        key_values_per_token=64,
        query_values_per_token=64,
        max_context_tokens=8192,
        is_tied=True,
        layers=(layer, layer),
        embedding_params=num_params // 100,
        head_params=num_params // 100,
        rest=(),
    )


TARGET = shape_of("target", 6_000_000_000)
SMALL, MIDDLE, LARGE = (shape_of(name, 10**8 * size) for name, size in (("small", 1), ("middle", 5), ("large", 18)))


def quantity(value: float) -> Quantity:
    return Quantity(value=value, kind="datasheet", source="the test")


MACHINE = Machine(
    name="box",
    devices=(
        MachineDevice(
            name="cuda:0",
            memory_bytes=quantity(12e9),
            memory_bytes_per_s=quantity(500e9),
            matmul_flops_per_s=quantity(50e12),
        ),
    ),
    host_memory_bytes=quantity(64e9),
    host_memory_bytes_per_s=quantity(50e9),
    host_matmul_flops_per_s=quantity(1e12),
    links=(MachineLink(kind="host_to_device", bytes_per_s=quantity(20e9), latency_s=quantity(1e-5)),),
)


def curve(draft: str, *, is_same_pair: bool = True, hazard: float = 0.8) -> AcceptanceCurve:
    return AcceptanceCurve(
        target="target", draft=draft, domain="code", survival=(hazard,), is_same_pair=is_same_pair, source="the test"
    )


def pricing(
    *known: ModelShape, curves: Sequence[AcceptanceCurve] | None = None, device_bytes: int = 8 * 10**9
) -> Pricing:
    curves = [curve(draft.name) for draft in known] if curves is None else curves
    return Pricing(
        profile=estimated_profile(MACHINE, TARGET, known, curves, dtype="bf16", link="cuda"),
        request=Request(
            budget=Budget(device_bytes=device_bytes, host_bytes=60 * 10**9),
            wishes=Wishes(dtype="bf16", context_tokens=768, link=CudaLink(), device="cuda:0"),
            workload=Workload(prompt_tokens=512, new_tokens=256, domain="code"),
        ),
    )


def accepted(found: DraftList) -> list[str]:
    return [draft.name for draft in found.drafts if draft.why_refused is None]


# --- refusals ---


@pytest.mark.parametrize(
    ("draft", "why"),
    [
        (TARGET.model_copy(update={"name": "copy"}), "the target itself"),
        (shape_of("as large", 6_000_000_000), "not smaller than the target: 11.29 GiB against 11.29 GiB"),
        (shape_of("half", 3_000_000_000), "larger than a third of the target: 5.64 GiB"),
        (shape_of("mamba", 10**8, kind="recurrent"), "cannot be rolled back"),
    ],
    ids=lambda value: value.name if isinstance(value, ModelShape) else "",
)
def test_sizes_and_states_that_rule_a_draft_out(draft: ModelShape, why: str) -> None:
    # 6e9 and a hundredth for the tied table, 2 bytes each, are 11.29 GiB
    assert why in (why_unfit(TARGET, draft) or "")


def test_a_third_of_the_target_may_draft() -> None:
    assert why_unfit(TARGET, shape_of("a third", 2_000_000_000)) is None


def test_a_wide_draft_counts_in_the_precision_it_would_run_in() -> None:
    assert why_unfit(TARGET, LARGE.model_copy(update={"stored_dtype": "fp32"})) is None


def test_a_tied_head_counts_once() -> None:
    assert num_params(SMALL) == 101_000_000
    assert num_params(SMALL.model_copy(update={"is_tied": False})) == 102_000_000


def test_only_the_first_of_equal_models_can_draft() -> None:
    again = SMALL.model_copy(update={"name": "again"})
    first, second = without_twins([Candidate(name="small", shape=SMALL), Candidate(name="again", shape=again)])
    assert first.why_refused is None
    assert second.why_refused == "it is the same model as small"


def test_a_refused_model_does_not_stand_in_the_way_of_its_twin() -> None:
    refused = Candidate(name="broken tokenizer", shape=SMALL, why_refused="other tokens")
    assert without_twins([refused, Candidate(name="small", shape=SMALL)])[1].why_refused is None


def test_memory_that_holds_the_target_alone_refuses_the_draft() -> None:
    # a slot of the target's layers takes 6 GB, the large draft 3.6 GB
    wishes = Wishes(dtype="bf16", context_tokens=768, link=DiskLink(mode="direct"), device="cpu")
    budget = Budget(device_bytes=7 * 10**9, host_bytes=2**63)
    assert why_too_big(TARGET, SMALL, budget, wishes) is None
    assert "short of the budget" in (why_too_big(TARGET, LARGE, budget, wishes) or "")
    with pytest.raises(NoFeasiblePlanError, match="target does not fit"):
        why_too_big(TARGET, SMALL, Budget(device_bytes=10**9, host_bytes=2**63), wishes)


# --- order ---


def test_without_speeds_the_usual_size_comes_first_and_the_rule_is_stated() -> None:
    # of the target's size: 1/60, 1/12 and 1/3.3; octaves from a tenth: 2.6, 0.3, 1.6
    found = list_drafts(TARGET, [Candidate(name=shape.name, shape=shape) for shape in (SMALL, LARGE, MIDDLE)])
    assert accepted(found) == ["middle", "large", "small"]
    assert all(draft.tokens_per_s is None for draft in found.drafts)
    assert found.ranked == BY_SIZE


def test_predicted_speeds_decide_where_they_are_known() -> None:
    shared = pricing(SMALL, MIDDLE, LARGE, curves=[curve("small", hazard=0.9), curve("middle"), curve("large")])
    candidates = [Candidate(name=shape.name, shape=shape) for shape in (LARGE, MIDDLE, SMALL)]
    found = list_drafts(TARGET, candidates, {shape.fingerprint: shared for shape in (SMALL, MIDDLE, LARGE)})
    speeds = [draft.tokens_per_s or 0.0 for draft in found.drafts if draft.why_refused is None]
    assert accepted(found)[0] == "small"
    assert speeds == sorted(speeds, reverse=True)
    assert found.ranked == BY_SPEED
    assert found.best is not None
    assert (found.best.plain_tokens_per_s or 0.0) < speeds[0]


def test_a_draft_of_unknown_speed_stands_behind_those_that_are_known() -> None:
    candidates = [Candidate(name=shape.name, shape=shape) for shape in (MIDDLE, SMALL)]
    found = list_drafts(TARGET, candidates, {"small": pricing(SMALL)})
    assert accepted(found) == ["small", "middle"]
    assert found.ranked == f"{BY_SPEED}; {BY_SIZE}"


def test_the_refused_come_last_with_their_reasons() -> None:
    unread = Candidate(name="unread", why_refused="it holds no weights")
    found = list_drafts(TARGET, [unread, Candidate(name="small", shape=SMALL)])
    assert [(draft.name, draft.why_refused) for draft in found.drafts] == [
        ("small", None),
        ("unread", "it holds no weights"),
    ]
    assert found.drafts[1].num_params is None


def test_a_draft_that_the_priced_memory_does_not_hold_is_refused() -> None:
    shared = pricing(SMALL, LARGE, device_bytes=8 * 10**9)
    candidates = [Candidate(name=shape.name, shape=shape) for shape in (LARGE, SMALL)]
    found = list_drafts(TARGET, candidates, {"small": shared, "large": shared})
    assert accepted(found) == ["small"]
    assert "short of the budget" in (found.drafts[1].why_refused or "")


@pytest.mark.parametrize(("is_same_pair", "basis"), [(True, "estimated"), (False, "assumed")])
def test_acceptance_of_another_pair_is_called_assumed(is_same_pair: bool, basis: str) -> None:
    priced = pricing(SMALL, curves=[curve("small", is_same_pair=is_same_pair)])
    found = list_drafts(TARGET, [Candidate(name="small", shape=SMALL)], {"small": priced})
    assert found.drafts[0].basis == basis


def test_a_measured_profile_is_called_measured() -> None:
    priced = pricing(SMALL)
    measured = Pricing(profile=priced.profile.model_copy(update={"kind": "measured"}), request=priced.request)
    found = list_drafts(TARGET, [Candidate(name="small", shape=SMALL)], {"small": measured})
    assert found.drafts[0].basis == "measured"


def test_no_draft_at_all_is_an_answer() -> None:
    found = list_drafts(TARGET, [])
    assert found.best is None
    assert found.ranked == "none can draft"


# --- assumed acceptance ---


def published(name: str, size_ratio: float, domain: str) -> PublishedPair:
    entry = AcceptanceCurve(
        target=f"{name}-t", draft=f"{name}-d", domain=domain, survival=(0.5,), is_same_pair=True, source="a post"
    )
    return PublishedPair(curve=entry, size_ratio=size_ratio)


def test_acceptance_is_assumed_from_the_pair_of_the_nearest_ratio() -> None:
    pairs = [published("near", 14, "code"), published("far", 50, "code"), published("prose", 12, "prose")]
    assumed = assumed_curve(TARGET, MIDDLE, pairs, "code")  # 12 times
    assert (assumed.target, assumed.draft, assumed.is_same_pair) == ("target", "middle", False)
    assert assumed.source.startswith("assumed, as nothing is published of this pair: near-t is 14 times")
    assert assumed_curve(TARGET, MIDDLE, pairs, "chat").source.endswith("on prose: a post")


# --- the command ---


def command(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(drafts)
    return CliRunner().invoke(app, [*arguments])


@pytest.fixture(autouse=True)
def no_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "no-such-cache"))


def listed(*arguments: str) -> DraftList:
    run = command(*arguments, "--json")
    assert run.exit_code == 0, run.output
    return DraftList.model_validate_json(run.stdout)


def test_the_demo_target_has_its_draft() -> None:
    found = listed(TARGET_FOLDER)
    assert [Path(name).name for name in accepted(found)] == ["draft"]
    assert found.drafts[0].tokens_per_s is None
    assert "no speed is known" in found.notes[0]


def test_a_copy_of_the_demo_target_finds_the_embedded_draft(tmp_path: Path) -> None:
    for file in demo_folder("target").iterdir():
        (tmp_path / "copy").mkdir(exist_ok=True)
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    assert Path(accepted(listed(str(tmp_path / "copy")))[0]).samefile(DRAFT_FOLDER)


def test_a_named_machine_gives_estimates_and_says_what_is_assumed() -> None:
    found = listed(TARGET_FOLDER, "--machine", "rtx-3060-12gb", "--text", "code")
    assert found.drafts[0].basis == "assumed"
    assert (found.drafts[0].tokens_per_s or 0.0) > 0
    assert "not measured" in found.notes[0]
    assert "assumed" in found.notes[1]


def test_the_table_ends_with_what_to_paste() -> None:
    run = command(TARGET_FOLDER)
    lines = run.stdout.rstrip().splitlines()
    assert lines[0].split() == ["draft", "parameters", "size", "predicted", "tok/s", "why", "refused"]
    assert "unknown" in lines[1]
    assert lines[-2].startswith("planner profile ")
    assert lines[-1].startswith("planner recommend --target ")


def test_every_kind_of_refusal_is_listed_and_none_stops_the_list(tiny_model: TinyModel, tmp_path: Path) -> None:
    (tmp_path / "other-tokens").symlink_to(tiny_model("llama", "bf16"))
    (tmp_path / "recurrent").symlink_to(tiny_model("falcon-h1", "bf16"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    found = listed(TARGET_FOLDER, "--in", str(tmp_path))
    refused = {Path(draft.name).name: draft.why_refused or "" for draft in found.drafts if draft.why_refused}
    assert "another tokenizer" in refused["other-tokens"]
    assert "rolled back" in refused["recurrent"]
    assert "config.json is not JSON" in refused["broken"] or "holds no weights" in refused["broken"]
    assert len(accepted(found)) == 1


def test_device_memory_refuses_what_does_not_fit_beside_the_target() -> None:
    # the demo target takes 6.9 MiB at the least, its draft 1.7 MiB and a cache
    (found,) = listed(TARGET_FOLDER, "--device-memory", "8MiB").drafts
    assert "short of the budget 8.00 MiB" in (found.why_refused or "")
    assert accepted(listed(TARGET_FOLDER, "--device-memory", "64MiB"))


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (["owner/unknown"], BadInputError, "not on this machine"),
        ([TARGET_FOLDER, "--machine", "rtx-9999"], BadInputError, "no machine"),
        ([TARGET_FOLDER, "--in", "/no/such/folder"], BadInputError, "there is no folder"),
        ([TARGET_FOLDER, "--device-memory", "1MiB"], NoFeasiblePlanError, "does not fit"),
    ],
)
def test_a_question_that_cannot_be_answered_says_why(arguments: list[str], error: type, text: str) -> None:
    run = command(*arguments)
    assert isinstance(run.exception, error)
    assert text in str(run.exception)
    assert run.stdout == ""


def test_a_target_that_cannot_speculate_is_refused_as_such(tiny_model: TinyModel) -> None:
    run = command(str(tiny_model("jamba")))
    assert isinstance(run.exception, BadInputError)
    assert "cannot speculate" in str(run.exception)


def test_json_is_one_document() -> None:
    assert json.loads(command(TARGET_FOLDER, "--json").stdout)["target"] == TARGET_FOLDER
