"""The files that cross a boundary: they come back whole, damage is refused by field, and writes are atomic."""

import json
import os
import pickle
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from planner.contracts.base import MAX_FILE_BYTES, ContractFile, write_atomically
from planner.contracts.errors import BadInputError, NoFeasiblePlanError, ResourceFailureError, UsageError
from planner.contracts.machine import Machine, MachineDevice, MachineLink, Quantity
from planner.contracts.model_shape import LayerShape, ModelShape, TensorGroup
from planner.contracts.performance import LinkSplit, Performance, RoundSplit
from planner.contracts.plan import (
    ChainDraft,
    CudaLink,
    Device,
    DiskLink,
    Draft,
    EmulatedLink,
    HybridDraft,
    LinkChoice,
    MemorySplit,
    ModelRef,
    NgramDraft,
    NoDraft,
    Plan,
    SelfDraft,
    Staging,
    TreeDraft,
    Unit,
)
from planner.contracts.profile import (
    AcceptanceRecording,
    ComputeMeasurement,
    LinkMeasurement,
    Profile,
    Spread,
)
from planner.contracts.quantities import (
    format_bytes,
    format_bytes_per_s,
    format_s,
    format_tokens_per_s,
    parse_bytes,
    parse_bytes_per_s,
    tokens_per_s_digits,
)
from planner.contracts.report import LlamaCppTimings, NearTie, Report, RoundRecord, VerifyResult

QUICK = settings(deadline=None)  # the machine may be busy

# --- one example of each file ---


def measured(value: float) -> Quantity:
    return Quantity(value=value, kind="measured", source="bench, 2025-11-20")


MACHINE = Machine(
    name="workstation",
    devices=(
        MachineDevice(
            name="cuda:0",
            memory_bytes=measured(12 * 2**30),
            memory_bytes_per_s=measured(504e9),
            matmul_flops_per_s=Quantity(value=29e12, kind="datasheet", source="vendor"),
        ),
    ),
    host_memory_bytes=measured(64 * 2**30),
    host_memory_bytes_per_s=measured(65e9),
    links=(MachineLink(kind="host_to_device", bytes_per_s=measured(25.6e9), latency_s=measured(1e-5)),),
)
SHAPE = ModelShape(
    name="models/tiny",
    fingerprint="0" * 32,
    model_type="llama",
    stored_dtype="bf16",
    hidden_size=64,
    intermediate_size=96,
    vocab_size=128,
    num_heads=4,
    key_values_per_token=64,
    query_values_per_token=64,
    max_context_tokens=512,
    is_tied=False,
    layers=(
        LayerShape(tensors=(TensorGroup(num_params=4096, count=4),), kind="full"),
        LayerShape(tensors=(TensorGroup(num_params=4096, count=4),), kind="sliding", window_tokens=32),
    ),
    embedding_params=8192,
    head_params=8192,
    rest=(TensorGroup(num_params=64, count=1),),
)
SPREAD = Spread(p25=1e-3, median=2e-3, p75=3e-3, num_samples=9)
PROFILE = Profile(
    kind="measured",
    created="2026-11-20T12:00:00Z",
    machine=MACHINE,
    machine_fingerprint="2" * 32,
    num_threads=8,
    target=SHAPE,
    drafts=(SHAPE,),
    dtype="bf16",
    versions={"torch": "2.13"},
    links=(LinkMeasurement(link="cuda", num_bytes=2**20, loaded=True, duration_s=SPREAD),),
    compute=(ComputeMeasurement(unit="layer", num_tokens=4, context_tokens=0, duration_s=SPREAD),),
    acceptance=(AcceptanceRecording(domain="code", prompt_tokens=3, ranks=(0, 3), draft_probs=(0.5, 0.25)),),
)
MEMORY = MemorySplit(
    residents_bytes=100,
    slots_bytes=200,
    draft_bytes=0,
    target_kv_bytes=30,
    draft_kv_bytes=0,
    activations_bytes=40,
    overhead_bytes=0,
    margin_bytes=4,
    host_weights_bytes=500,
    host_embedding_bytes=60,
    host_staging_bytes=0,
    host_overhead_bytes=7,
)


def unit(kind: str = "layer", index: int = 0, placement: str = "resident", **changes: object) -> Unit:
    rows = (0, 128) if kind == "head_chunk" else None
    common = {"source": "disk", "wire_bytes": 100, "dense_bytes": 256, "rows": rows}
    return Unit.model_validate({"kind": kind, "index": index, "placement": placement, **common, **changes})


def plan(**changes: object) -> Plan:
    fields: dict[str, object] = {
        "target": ModelRef(name="models/tiny", fingerprint="0" * 32),
        "dtype": "bf16",
        "context_tokens": 64,
        "prefill_chunk_tokens": 16,
        "devices": (Device(name="cpu", budget_bytes=2**20),),
        "link": DiskLink(mode="direct"),
        "slots": 2,
        "draft": NoDraft(),
        "units": (unit("embedding", 0, "host"), unit(), unit(index=1, placement="streamed"), unit("head_chunk")),
        "memory": MEMORY,
        "predicted": Performance(device_bytes=374, host_bytes=567),
    }
    return Plan.model_validate({**fields, **changes})


def report() -> Report:
    round_split = RoundSplit(
        round_s=0.1, compute_s=0.05, waiting_for_weights_s=0.02, draft_s=0.02, host_s=0.005, unexplained_s=0.005
    )
    link_split = LinkSplit(busy_s=0.08, waiting_for_slot_s=0.02, waiting_for_disk_s=0.0, bytes_per_s=1e9)
    performance = Performance(
        generated_tokens_per_s=12.5, survival=(0.8, 0.5), round=round_split, link=link_split, total_bytes=10
    )
    return Report(
        text="x = 1\n\u20ac \u0000 \U0001f600",
        finish_reason="length",
        target=ModelRef(name="models/tiny", fingerprint="0" * 32),
        link_label="disk (direct)",
        seed=2**64 - 1,
        prompt_tokens=3,
        prompt_s=0.25,
        generated_tokens=4,
        generated_s=0.3,
        generated_tokens_per_s=10.0,
        num_rounds=2,
        num_draft_tokens=6,
        num_accepted_tokens=2,
        predicted=Performance(),
        measured=performance,
        rounds=(
            RoundRecord(
                num_draft_tokens=3, num_accepted_tokens=1, num_emitted_tokens=2, compute=round_split, link=link_split
            ),
            RoundRecord(
                num_draft_tokens=3, num_accepted_tokens=1, num_emitted_tokens=2, compute=round_split, link=None
            ),
        ),
        verify=VerifyResult(
            num_checked_tokens=4,
            num_agreeing_tokens=3,
            allowed_logit_gap=0.125,
            near_ties=(NearTie(position=2, emitted_token=5, preferred_token=6, logit_gap=0.0625),),
            passed=True,
        ),
        warnings=("model.safetensors was replaced",),
        timings=LlamaCppTimings(
            prompt_n=3,
            prompt_ms=250.0,
            predicted_n=4,
            predicted_ms=300.0,
            predicted_per_second=None,
            draft_n=6,
            draft_n_accepted=2,
        ),
        plan=plan(),
    )


EXAMPLES: dict[str, ContractFile] = {
    "machine": MACHINE,
    "shape": SHAPE,
    "profile": PROFILE,
    "plan": plan(),
    "report": report(),
}
EACH_FILE = pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)


def refused(kind: type[ContractFile], path: Path, content: object, message: str) -> None:
    path.write_text(json.dumps(content) if not isinstance(content, str) else content, encoding="utf-8")
    with pytest.raises(BadInputError, match=message) as caught:
        kind.read(path)
    assert str(path) in caught.value.what
    assert caught.value.remedy


# --- round trips ---


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


# --- what is refused when a file is read ---


@EACH_FILE
def test_unknown_field_is_refused_by_name(example: ContractFile, tmp_path: Path) -> None:
    content = {**json.loads(example.to_json()), "future": 1}
    refused(type(example), tmp_path / "file.json", content, "future: Extra inputs are not permitted")


@EACH_FILE
def test_each_missing_field_is_refused_by_name(example: ContractFile, tmp_path: Path) -> None:
    kind = type(example)
    for name, field in kind.model_fields.items():
        if field.is_required():
            content = json.loads(example.to_json())
            del content[name]
            refused(kind, tmp_path / "file.json", content, f"{name}: Field required")


@EACH_FILE
def test_newer_schema_is_refused_by_name(example: ContractFile, tmp_path: Path) -> None:
    for version in (2, 0, "1", None):
        content = {**json.loads(example.to_json()), "schema_version": version}
        refused(type(example), tmp_path / "file.json", content, "schema_version: ")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("context_tokens", "64"),
        ("context_tokens", 64.5),
        ("context_tokens", True),
        ("context_tokens", 0),
        ("context_tokens", -1),
        ("prefill_chunk_tokens", None),
        ("slots", 17),
        ("slots", -1),
        ("batch", 0),
        ("dtype", "int8"),
        ("devices", []),
        ("devices", {}),
        ("units", []),
        ("units", "layer"),
        ("link", {"kind": "usb"}),
        ("link", {"kind": "emulated", "bytes_per_s": 0}),
        ("link", {"kind": "emulated", "bytes_per_s": "2e9"}),
        ("draft", {"kind": "oracle"}),
        ("draft", {"kind": "chain", "model": "m", "fingerprint": "f", "draft_len": 65, "dtype": "bf16"}),
        ("target", {"name": 3, "fingerprint": "f"}),
        ("memory", None),
    ],
)
def test_wrong_value_is_refused_by_field(field: str, value: object, tmp_path: Path) -> None:
    refused(Plan, tmp_path / "plan.json", {**json.loads(plan().to_json()), field: value}, f"{field}[.:]")


def test_fault_deep_inside_is_named_by_its_path(tmp_path: Path) -> None:
    content = json.loads(plan().to_json())
    content["units"][2]["wire_bytes"] = -1
    refused(Plan, tmp_path / "plan.json", content, r"units\.2\.wire_bytes: Input should be greater than or equal to 0")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_number_that_is_not_finite_is_refused_by_field(number: str, tmp_path: Path) -> None:
    text = plan(link=EmulatedLink(bytes_per_s=2.5e9), staging=Staging(num_buffers=1, buffer_bytes=9)).to_json()
    assert "2500000000.0" in text
    message = "bytes_per_s: Input should be|not valid JSON|Invalid JSON"
    refused(Plan, tmp_path / "plan.json", text.replace("2500000000.0", number), message)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_number_that_is_not_finite_is_refused_in_the_program_too(number: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        EmulatedLink(bytes_per_s=number)


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", "3", "plan", "{}{}", "\ufeff{}", '{"a": \ud800}'.encode("utf-8", "replace").decode()],
)
def test_file_that_is_no_json_object_is_refused(text: str, tmp_path: Path) -> None:
    refused(Plan, tmp_path / "plan.json", text, "is no valid Plan file")


def test_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    for content in (b"\xff\xfe", b"\x80\x04.", bytes(100), os.urandom(1000)):
        (tmp_path / "plan.json").write_bytes(content)
        with pytest.raises(BadInputError, match="is no valid Plan file"):
            Plan.read(tmp_path / "plan.json")


def test_deeply_nested_file_is_refused(tmp_path: Path) -> None:
    refused(Plan, tmp_path / "plan.json", "[" * 200_000, "is no valid Plan file")


def test_file_above_the_size_limit_is_refused_without_being_parsed(tmp_path: Path) -> None:
    text = plan().to_json()
    padded = text + " " * (MAX_FILE_BYTES - len(text.encode()))
    (tmp_path / "plan.json").write_text(padded)
    assert Plan.read(tmp_path / "plan.json") == plan()
    refused(Plan, tmp_path / "plan.json", padded + " ", f"larger than {MAX_FILE_BYTES} bytes")


def test_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(BadInputError, match="cannot read") as caught:
            Plan.read(path)
        assert str(path) in caught.value.what


def leaves(content: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    if isinstance(content, dict):
        return [leaf for key, value in content.items() for leaf in leaves(value, (*path, key))]
    if isinstance(content, list):
        return [leaf for index, value in enumerate(content) for leaf in leaves(value, (*path, index))]
    return [path]


def replaced(content: object, path: tuple[str | int, ...], value: object) -> object:
    if not path:
        return value
    first, rest = path[0], path[1:]
    if isinstance(content, dict):
        return {**content, first: replaced(content[first], rest, value)}
    assert isinstance(content, list)
    return [replaced(each, rest, value) if index == first else each for index, each in enumerate(content)]


HOSTILE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(min_value=-(2**80), max_value=2**80),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.just([]),
    st.just({}),
)


@QUICK
@given(st.sampled_from(sorted(EXAMPLES)), st.data(), HOSTILE)
def test_any_value_in_any_place_is_read_or_refused_in_order(name: str, data: st.DataObject, value: object) -> None:
    example = EXAMPLES[name]
    content = json.loads(example.to_json())
    path = data.draw(st.sampled_from(leaves(content)))
    text = json.dumps(replaced(content, path, value))
    try:
        read = type(example).model_validate_json(text)
    except ValidationError:
        return
    assert type(example).model_validate_json(read.to_json()) == read


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


# --- atomic writes ---


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


# --- quantities ---


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("12GiB", 12 * 2**30),
        ("8GB", 8 * 10**9),
        ("1.5GiB", 3 * 2**29),
        ("400 MiB", 400 * 2**20),
        (" 1kb ", 1000),
        ("1KiB", 1024),
        ("2tib", 2 * 2**40),
        ("7B", 7),
        ("0.001KB", 1),
    ],
)
def test_size_is_read_in_its_unit(text: str, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize(("text", "rate"), [("25GB/s", 25e9), ("1GiB/s", 2.0**30), ("500 MB/s", 5e8), ("1b/s", 1.0)])
def test_rate_is_read_in_its_unit(text: str, rate: float) -> None:
    assert parse_bytes_per_s(text) == rate


BAD_SIZES = [
    "",
    "12",
    "12.5",
    "GiB",
    "12G",
    "12Gi",
    "-1GiB",
    "0GiB",
    "0.5B",
    "1e3GB",
    "12GiB/s",
    "12 Gi B",
    "1,5GB",
    "infGB",
]


@pytest.mark.parametrize("text", [*BAD_SIZES, "nanB", "0x10B", "9" * 30 + "GB", "9" * 400 + "GB", "12GiB\n12GiB"])
def test_size_without_a_number_and_a_unit_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a memory size") as caught:
        parse_bytes(text)
    assert "GiB" in caught.value.remedy
    assert len(caught.value.what) < 100


@pytest.mark.parametrize("text", ["", "25", "25GB", "25GBps", "25Gb ps", "0GB/s", "-1GB/s", "9" * 400 + "GB/s"])
def test_rate_without_a_number_and_a_unit_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a rate"):
        parse_bytes_per_s(text)


@QUICK
@given(st.integers(min_value=1, max_value=2**50), st.sampled_from(["", "Ki", "Mi", "Gi", "K", "M", "G"]))
def test_whole_number_of_units_is_read_exactly(number: int, prefix: str) -> None:
    base = 1024 if prefix.endswith("i") else 1000
    num_bytes = number * base ** " KMG".index(prefix[:1] or " ")
    if num_bytes <= 2**53:
        assert parse_bytes(f"{number}{prefix}B") == num_bytes
        assert parse_bytes(f"{number} {prefix.lower()}b") == num_bytes


@QUICK
@given(st.integers(min_value=1, max_value=2**60))
def test_shown_size_reads_back_within_its_two_decimals(num_bytes: int) -> None:
    # Two decimals of a number of at least one are half a hundredth off at most, and a part of a byte is dropped.
    assert abs(parse_bytes(format_bytes(num_bytes)) - num_bytes) <= 0.0051 * num_bytes + 1


@QUICK
@given(st.floats(min_value=1e7, max_value=1e15))
def test_shown_rate_reads_back_within_its_two_decimals(rate: float) -> None:
    assert parse_bytes_per_s(format_bytes_per_s(rate)) == pytest.approx(rate, abs=0.0051e9)


@QUICK
@given(st.text(max_size=20))
def test_any_text_is_a_size_of_at_least_a_byte_or_refused(text: str) -> None:
    for parse in (parse_bytes, parse_bytes_per_s):
        parse_or_refuse(parse, text)


def parse_or_refuse(parse: Callable[[str], float], text: str) -> None:
    with suppress(UsageError):
        assert parse(text) >= 1


def test_numbers_are_shown_in_the_units_that_people_read() -> None:
    assert [format_bytes(size) for size in (0, 1023, 1536, 2**20, 3 * 2**29, 2**40)] == [
        "0 B",
        "1023 B",
        "1.50 KiB",
        "1.00 MiB",
        "1.50 GiB",
        "1.00 TiB",
    ]
    assert format_bytes(-(2**31)) == "-2.00 GiB"
    assert format_bytes_per_s(25.6e9) == "25.60 GB/s"
    assert [format_s(duration) for duration in (0.0123, 0.9999, 12.344)] == ["12.3 ms", "999.9 ms", "12.34 s"]
    assert [format_tokens_per_s(rate) for rate in (12.345, 0.00864, 0.0)] == [
        "12.35 tok/s",
        "0.0086 tok/s",
        "0.00 tok/s",
    ]
    assert [tokens_per_s_digits(gain, "+") for gain in (0.25, 0.00034, -0.002)] == ["+0.25", "+0.00034", "-0.002"]


def test_draft_and_link_are_told_apart_by_their_kind_alone() -> None:
    drafts: TypeAdapter[Draft] = TypeAdapter(Draft)
    for draft in DRAFTS:
        assert drafts.validate_python(draft.model_dump()) == draft


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
