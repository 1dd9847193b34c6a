"""One example of each file that crosses a boundary, and how to see that a file is refused."""

import json
from pathlib import Path

import pytest

from planner.contracts.base import ContractFile
from planner.contracts.errors import BadInputError
from planner.contracts.machine import Machine, MachineDevice, MachineLink, Quantity
from planner.contracts.model_shape import LayerShape, ModelShape, TensorGroup
from planner.contracts.performance import LinkSplit, Performance, RoundSplit
from planner.contracts.plan import Device, DiskLink, MemorySplit, ModelRef, NoDraft, Plan, Unit
from planner.contracts.profile import AcceptanceRecording, ComputeMeasurement, LinkMeasurement, Profile, Spread
from planner.contracts.report import LlamaCppTimings, NearTie, Report, RoundRecord, VerifyResult


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
    """Reading the content as that file fails with a message that names the path, and says what to try."""
    path.write_text(json.dumps(content) if not isinstance(content, str) else content, encoding="utf-8")
    with pytest.raises(BadInputError, match=message) as caught:
        kind.read(path)
    assert str(path) in caught.value.what
    assert caught.value.remedy
