"""The block after a run: predicted beside measured where the plan predicts, and how to get that where it does not."""

import pytest

from planner.contracts.performance import LinkSplit, Performance, RoundSplit
from planner.contracts.plan import Device, DiskLink, MemorySplit, ModelRef, NoDraft, Plan, Unit
from planner.contracts.report import LlamaCppTimings, Report
from runtime.statistics import show_statistics

MIB = 2**20
PLANNED_MEMORY = Performance(device_bytes=60 * MIB, host_bytes=40 * MIB)


def performance(by: float, **changes: object) -> Performance:
    """A run that takes `by` times as long as one of 2 tokens in rounds of 100 ms."""
    whole = Performance(
        generated_tokens_per_s=20 / by,
        ttft_s=0.5 * by,
        tokens_per_round=2.0,
        round=RoundSplit(
            round_s=0.1 * by,
            compute_s=0.04 * by,
            waiting_for_weights_s=0.06 * by,
            draft_s=0.0,
            host_s=0.0,
            unexplained_s=0.0,
        ),
        link=LinkSplit(busy_s=0.1 * by, waiting_for_slot_s=0.0, waiting_for_disk_s=0.0, bytes_per_s=1e9 / by),
        device_bytes=60 * MIB,
        host_bytes=40 * MIB,
    )
    return whole.model_copy(update=changes)


def block(
    capsys: pytest.CaptureFixture[str],
    measured: Performance,
    predicted: Performance,
    low: Performance | None = None,
    high: Performance | None = None,
) -> dict[str, str]:
    """What goes to stderr: what stands behind each label."""
    layer = Unit(kind="layer", index=0, placement="resident", source="disk", wire_bytes=1, dense_bytes=1)
    plan = Plan(
        target=ModelRef(name="models/tiny", fingerprint="0" * 32),
        dtype="bf16",
        context_tokens=64,
        prefill_chunk_tokens=16,
        devices=(Device(name="cpu", budget_bytes=2**30),),
        link=DiskLink(mode="direct"),
        slots=2,
        draft=NoDraft(),
        units=(layer,),
        memory=MemorySplit.model_validate(dict.fromkeys(MemorySplit.model_fields, 0)),
        predicted=predicted,
        predicted_p10=low,
        predicted_p90=high,
    )
    report = Report(
        text="",
        finish_reason="length",
        target=plan.target,
        link_label="disk (direct)",
        seed=None,
        prompt_tokens=10,
        prompt_s=0.5,
        generated_tokens=20,
        generated_s=1.0,
        generated_tokens_per_s=measured.generated_tokens_per_s,
        num_rounds=10,
        num_draft_tokens=0,
        num_accepted_tokens=0,
        predicted=predicted,
        measured=measured,
        rounds=(),
        timings=LlamaCppTimings(
            prompt_n=10,
            prompt_ms=500.0,
            predicted_n=20,
            predicted_ms=1000.0,
            predicted_per_second=None,
            draft_n=0,
            draft_n_accepted=0,
        ),
        plan=plan,
    )
    show_statistics(report)
    written = capsys.readouterr()
    assert written.out == ""
    assert "\x1b" not in written.err
    cells = [line.strip().partition("  ") for line in written.err.splitlines() if line.strip()]
    return {label: " ".join(rest.split()) for label, _, rest in cells}


def test_predicted_stands_beside_measured_with_interval_and_error(capsys: pytest.CaptureFixture[str]) -> None:
    # 25 % longer: 20 / 1.25 = 16 tok/s, which is 20 % less
    rows = block(capsys, performance(1.25), performance(1.0), performance(0.9), performance(1.1))
    assert rows["predicted (P10-P90)"] == "measured error"
    assert rows["first token"] == "500.0 ms (450.0 ms-550.0 ms) 625.0 ms +25.0%"
    assert rows["tok/s"].endswith("16.00 -20.0%")
    assert rows["tokens per round"] == "2.00 2.00 +0.0%", "an interval of no width is not shown"
    assert rows["device memory"] == "60.00 MiB 60.00 MiB +0.0%"
    assert rows["link rate"].startswith("1.00 GB/s (")
    assert "predicted" not in rows


def test_component_that_was_predicted_as_nothing_has_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    rows = block(capsys, performance(1.25), performance(1.0), performance(0.9), performance(1.1))
    assert rows["draft"] == "0.0 ms 0.0 ms"


def test_prediction_without_interval_is_shown_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert block(capsys, performance(1.25), performance(1.0))["first token"] == "500.0 ms 625.0 ms +25.0%"


def test_device_and_host_that_cannot_be_told_apart_are_one_row(capsys: pytest.CaptureFixture[str]) -> None:
    measured = performance(1.0, device_bytes=None, host_bytes=None, total_bytes=95 * MIB)
    rows = block(capsys, measured, performance(1.0))
    assert rows["memory"] == "100.00 MiB 95.00 MiB -5.0%"
    assert "device memory" not in rows


def test_run_that_measured_nothing_shows_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    rows = block(capsys, PLANNED_MEMORY, performance(1.0))
    assert "tok/s" not in rows
    assert "device memory" in rows


def test_plan_of_memory_alone_says_how_to_get_predictions(capsys: pytest.CaptureFixture[str]) -> None:
    rows = block(capsys, performance(1.0), PLANNED_MEMORY)
    assert rows["predicted"] == "plan with planner recommend to see predicted beside measured"
    assert "predicted (P10-P90)" not in rows
    assert "device memory" not in rows
