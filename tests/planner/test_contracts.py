"""The files that cross a boundary come back whole, and those that contradict themselves are refused."""

import json
import pickle
from pathlib import Path

import pytest
from made_up_files import EACH_FILE, MEMORY, plan, refused, unit
from pydantic import TypeAdapter, ValidationError

from planner.contracts.base import ContractFile
from planner.contracts.errors import BadInputError, NoFeasiblePlanError
from planner.contracts.plan import (
    ChainDraft,
    CudaLink,
    Device,
    DiskLink,
    Draft,
    EmulatedLink,
    HybridDraft,
    LinkChoice,
    NgramDraft,
    NoDraft,
    Plan,
    SelfDraft,
    Staging,
    TreeDraft,
    Unit,
)


@EACH_FILE
def test_file_comes_back_as_it_was_written(example: ContractFile, tmp_path: Path) -> None:
    example.write(tmp_path / "file.json")
    assert type(example).read(tmp_path / "file.json") == example


@EACH_FILE
def test_file_is_indented_json_with_a_schema_version_first(example: ContractFile) -> None:
    text = example.to_json()
    assert text.startswith('{\n  "schema_version": 1,\n')
    assert text.endswith("}\n")
    assert json.loads(text)["schema_version"] == 1


@EACH_FILE
def test_record_is_frozen(example: ContractFile) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(example, next(iter(type(example).model_fields)), 1)


@EACH_FILE
def test_no_number_is_lost_in_json(example: ContractFile) -> None:
    assert type(example).model_validate_json(example.to_json()).to_json() == example.to_json()


DRAFTS: list[Draft] = [
    NoDraft(),
    ChainDraft(model="m", fingerprint="f", draft_len=4, dtype="fp16"),
    TreeDraft(model="m", fingerprint="f", num_nodes=48, max_depth=8, pass_nodes=16, dtype="bf16", device=1),
    NgramDraft(num_nodes=8, max_depth=8, min_match_tokens=2),
    HybridDraft(model="m", fingerprint="f", num_nodes=48, max_depth=8, pass_nodes=16, min_match_tokens=2, dtype="fp32"),
    SelfDraft(num_layers=8, draft_len=4),
]
LINKS: list[LinkChoice] = [
    DiskLink(),
    DiskLink(mode="direct"),
    CudaLink(),
    EmulatedLink(bytes_per_s=2e9, latency_s=1e-5),
]
UNITS = [
    *(unit(kind, 0, "host") for kind in ("layer", "expert", "head_chunk", "embedding")),
    *(unit("layer", 0, placement) for placement in ("resident", "streamed", "host", "routed")),
    *(unit("layer", 0, codec=codec) for codec in ("raw", "bf12", "q8", "nf4")),
    *(unit("layer", 0, source=source) for source in ("ram", "disk")),
]


@pytest.mark.parametrize("draft", DRAFTS, ids=lambda draft: draft.kind)
def test_every_kind_of_draft_crosses_in_a_plan(draft: Draft, tmp_path: Path) -> None:
    plan(draft=draft).write(tmp_path / "plan.json")
    assert Plan.read(tmp_path / "plan.json").draft == draft


@pytest.mark.parametrize("link", LINKS, ids=lambda link: link.kind)
def test_every_link_crosses_in_a_plan(link: LinkChoice, tmp_path: Path) -> None:
    written = plan(link=link, staging=Staging(num_buffers=2, buffer_bytes=256))
    written.write(tmp_path / "plan.json")
    assert Plan.read(tmp_path / "plan.json") == written


@pytest.mark.parametrize("each", UNITS, ids=lambda each: f"{each.kind}-{each.placement}-{each.source}-{each.codec}")
def test_every_variant_of_a_unit_crosses_in_a_plan(each: Unit, tmp_path: Path) -> None:
    plan(units=(each,)).write(tmp_path / "plan.json")
    assert Plan.read(tmp_path / "plan.json").units == (each,)


def test_parts_of_layers_cross_in_a_plan_in_pass_order(tmp_path: Path) -> None:
    parts = (unit("attention"), unit("mlp"), unit("attention", 1, "streamed"), unit("mlp", 1))
    plan(units=parts, slots=1).write(tmp_path / "plan.json")
    read = Plan.read(tmp_path / "plan.json")
    assert (read.units, read.granularity) == (parts, "parts")
    assert plan().granularity == "layers"


@pytest.mark.parametrize(
    "units",
    [
        (unit("attention"),),
        (unit("mlp"), unit("attention")),
        (unit("attention"), unit("attention", 1), unit("mlp"), unit("mlp", 1)),
        (unit("attention", 1), unit("mlp", 1)),
        (unit("attention"), unit("mlp"), unit("attention"), unit("mlp")),
    ],
)
def test_parts_of_layers_in_another_order_are_refused(units: tuple[Unit, ...]) -> None:
    with pytest.raises(ValidationError, match=r"attention 0, mlp 0, attention 1, mlp 1, .* must be listed so"):
        plan(units=units)


def test_whole_layers_and_parts_in_one_plan_are_refused() -> None:
    with pytest.raises(ValidationError, match="whole layers, or an attention and an mlp unit of each, never both"):
        plan(units=(unit("layer"), unit("attention"), unit("mlp")))


def test_several_devices_and_batches_cross_in_a_plan(tmp_path: Path) -> None:
    devices = (Device(name="cuda:0", budget_bytes=2**30), Device(name="cuda:1", budget_bytes=2**31))
    plan(devices=devices, batch=8).write(tmp_path / "plan.json")
    assert Plan.read(tmp_path / "plan.json").devices == devices
    assert Plan.read(tmp_path / "plan.json").batch == 8


def test_draft_and_link_are_told_apart_by_their_kind_alone() -> None:
    drafts: TypeAdapter[Draft] = TypeAdapter(Draft)
    for draft in DRAFTS:
        assert drafts.validate_python(draft.model_dump()) == draft


# --- plans that contradict themselves ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"units": (unit(), unit(index=2))}, "layer units must be listed in order"),
        ({"units": (unit(index=1), unit(index=0))}, "layer units must be listed in order"),
        ({"units": (unit(), unit())}, "layer units must be listed in order"),
        ({"units": (unit("head_chunk", 1),)}, "head_chunk units must be listed in order"),
        (
            {"units": (unit("head_chunk", 0, rows=(0, 64)), unit("head_chunk", 1, rows=(63, 128)))},
            "rows must follow each other",
        ),
        (
            {"units": (unit("head_chunk", 0, rows=(0, 64)), unit("head_chunk", 1, rows=(65, 128)))},
            "rows must follow each other",
        ),
        ({"units": (unit("head_chunk", 0, rows=(1, 64)),)}, "rows must follow each other"),
        ({"units": (unit("head_chunk", 0, rows=(0, 0)),)}, "rows must follow each other"),
        ({"units": (unit("head_chunk", 0, rows=None),)}, "rows belong to head chunks"),
        ({"units": (unit("layer", 0, rows=(0, 1)),)}, "rows belong to head chunks"),
        ({"slots": 0}, "at least 1 is needed where units are streamed"),
        ({"link": CudaLink()}, "need staging buffers"),
        ({"link": EmulatedLink(bytes_per_s=1e9)}, "need staging buffers"),
    ],
)
def test_plan_that_contradicts_itself_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        plan(**changes)


def test_plan_that_contradicts_itself_is_refused_as_a_file(tmp_path: Path) -> None:
    refused(Plan, tmp_path / "plan.json", {**json.loads(plan().to_json()), "slots": 0}, "at least 1 is needed")


def test_streamed_is_what_travels_in_pass_order() -> None:
    units = (unit(placement="streamed"), unit(index=1), unit(index=2, placement="streamed", wire_bytes=7))
    made = plan(units=units)
    assert made.streamed == (units[0], units[2])
    assert made.streamed_bytes == 107


def test_memory_split_adds_up_to_device_and_host() -> None:
    # 100 + 200 + 30 + 40 + 4 on the device; 500 + 60 + 7 on the host
    assert (MEMORY.device_bytes, MEMORY.host_bytes) == (374, 567)


# --- errors ---


def test_error_crosses_between_processes() -> None:
    error = NoFeasiblePlanError("it does not fit", why="it is too large", remedy="a smaller one")
    arrived = pickle.loads(pickle.dumps(error))
    assert type(arrived) is NoFeasiblePlanError
    assert (arrived.what, arrived.why, arrived.remedy) == (error.what, error.why, error.remedy)


def test_a_notebook_shows_an_error_in_its_three_lines() -> None:
    error = BadInputError("no such file", why="it is gone", remedy="look elsewhere")
    assert error._render_traceback_() == [
        "BadInputError: no such file",
        "  why: it is gone",
        "  try: look elsewhere",
    ]
