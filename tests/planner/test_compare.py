"""Predicted beside measured: by hand, what each component did to the speed, and what is refused."""

import json
import math
from pathlib import Path

import pytest
from made_up import profile

from planner.cli.compare import compare as command
from planner.compare import Comparison, Row, accuracies, attribution, compare, tokens_by_kind
from planner.contracts.components import COMPONENTS, components_of, error_frac
from planner.contracts.errors import BadInputError
from planner.contracts.performance import LinkSplit, Performance, RoundSplit
from planner.contracts.plan import (
    ChainDraft,
    Device,
    EmulatedLink,
    MemorySplit,
    ModelRef,
    NgramDraft,
    NoDraft,
    Plan,
    Unit,
    Workload,
)
from planner.contracts.report import LlamaCppTimings, Report

MIB = 2**20
STREAMED_BYTES = 40 * MIB


def performance(
    *,
    round_s: float = 0.4,
    compute_s: float = 0.08,
    draft_s: float = 0.03,
    host_s: float = 0.01,
    unexplained_s: float = 0.0,
    link_s: float | None = 0.4,
    tokens: float = 2.0,
    ttft_s: float = 0.5,
    speed: float | None = None,
    total_bytes: int | None = None,
) -> Performance:
    """By default a round that the link binds: 4 layers of 100 ms on the link, and 20 ms of compute each."""
    parts_s = compute_s + draft_s + host_s + unexplained_s
    return Performance(
        generated_tokens_per_s=tokens / round_s if speed is None else speed,
        ttft_s=ttft_s,
        tokens_per_round=tokens,
        round=RoundSplit(
            round_s=round_s,
            compute_s=compute_s,
            waiting_for_weights_s=max(0.0, round_s - parts_s),
            draft_s=draft_s,
            host_s=host_s,
            unexplained_s=unexplained_s,
        ),
        link=None
        if link_s is None
        else LinkSplit(
            busy_s=link_s,
            waiting_for_slot_s=0.0,
            waiting_for_disk_s=0.0,
            bytes_per_s=STREAMED_BYTES / link_s,
        ),
        device_bytes=None if total_bytes is not None else 60 * MIB,
        host_bytes=None if total_bytes is not None else 40 * MIB,
        total_bytes=total_bytes,
    )


PREDICTED = performance()


def scaled(by: float) -> Performance:
    """The predictions with all but memory multiplied."""
    assert PREDICTED.round is not None
    assert PREDICTED.link is not None
    parts = {name: getattr(PREDICTED, name) * by for name in ("generated_tokens_per_s", "ttft_s", "tokens_per_round")}
    return PREDICTED.model_copy(
        update={
            **parts,
            "round": RoundSplit(**{name: value * by for name, value in PREDICTED.round}),
            "link": LinkSplit(**{name: value * by for name, value in PREDICTED.link}),
        }
    )


LOW, HIGH = scaled(0.9), scaled(1.1)


def plan(predicted: Performance = PREDICTED, **changes: object) -> Plan:
    """Four layers of 20 ms that stream in 100 ms each through two slots, or lie on the device."""
    is_streamed = predicted.link is not None
    layers = [
        Unit(
            kind="layer",
            index=index,
            placement="streamed" if is_streamed else "resident",
            source="ram",
            wire_bytes=10 * MIB,
            dense_bytes=10 * MIB,
            copy_s=0.1 if is_streamed else None,
            compute_s=0.02,
        )
        for index in range(4)
    ]
    embedding = Unit(
        kind="embedding", index=0, placement="host", source="ram", wire_bytes=0, dense_bytes=1, compute_s=0
    )
    fields: dict[str, object] = {
        "target": ModelRef(name="models/tiny", fingerprint="0" * 32),
        "dtype": "bf16",
        "context_tokens": 64,
        "prefill_chunk_tokens": 16,
        "devices": (Device(name="cpu", budget_bytes=2**30),),
        "link": EmulatedLink(bytes_per_s=1e8),
        "slots": 2 if is_streamed else 0,
        "draft": NoDraft(),
        "units": (embedding, *layers),
        "memory": MemorySplit.model_validate(dict.fromkeys(MemorySplit.model_fields, 0)),
        "predicted": predicted,
        "predicted_p10": LOW,
        "predicted_p90": HIGH,
    }
    return Plan.model_validate({**fields, **changes})


def report(measured: Performance, made: Plan | None = None) -> Report:
    made = made or plan()
    return Report(
        text="",
        finish_reason="length",
        target=made.target,
        link_label="emulated 0.1 GB/s",
        seed=None,
        prompt_tokens=10,
        prompt_s=0.5,
        generated_tokens=20,
        generated_s=4.0,
        generated_tokens_per_s=measured.generated_tokens_per_s,
        num_rounds=10,
        num_draft_tokens=0,
        num_accepted_tokens=0,
        predicted=made.predicted,
        measured=measured,
        rounds=(),
        timings=LlamaCppTimings(
            prompt_n=10,
            prompt_ms=500.0,
            predicted_n=20,
            predicted_ms=4000.0,
            predicted_per_second=None,
            draft_n=0,
            draft_n_accepted=0,
        ),
        plan=made,
    )


def row(comparison: Comparison, label: str) -> Row:
    return next(entry for entry in comparison.rows if entry.component.label == label)


# --- what moved the speed ---


def test_measured_as_predicted_is_off_by_nothing_anywhere() -> None:
    comparison = compare(report(PREDICTED))
    assert len(comparison.rows) == 12  # all but memory as one, as device and host are told apart
    assert {entry.error_frac for entry in comparison.rows} == {0.0}
    assert all(entry.is_inside for entry in comparison.rows)
    assert set(comparison.attribution.shares_log.values()) == {0.0}
    assert len(comparison.attribution.shares_log) == 5
    assert comparison.attribution.total_log == comparison.attribution.unexplained_log == 0.0


def test_slower_link_alone_explains_all_of_the_speed() -> None:
    # The link binds: 4 * 0.125 = 0.5 s a round instead of 0.4, and ln(0.4 / 0.5) = -0.2231
    found = attribution(report(performance(round_s=0.5, link_s=0.5)))
    assert found.total_log == pytest.approx(-0.22314, abs=1e-5)
    assert found.shares_log["link_busy_s"] == pytest.approx(found.total_log)
    assert {share for name, share in found.shares_log.items() if name != "link_busy_s"} == {0.0}
    assert found.unexplained_log == pytest.approx(0.0, abs=1e-12)


def test_faster_link_counts_for_the_speed() -> None:
    # 4 * 0.08 = 0.32 s, still above the burst 2 * 0.08 + 0.04 + 2 * 0.02 = 0.24: ln(0.4 / 0.32) = +0.2231
    assert attribution(report(performance(round_s=0.32, link_s=0.32))).shares_log["link_busy_s"] == pytest.approx(
        0.22314, abs=1e-5
    )


def test_slower_compute_under_a_link_that_binds_costs_nothing() -> None:
    # 4 * 0.04 + 0.03 + 0.01 = 0.2 s of compute hide under 0.4 s of the link
    found = attribution(report(performance(compute_s=0.16)))
    assert found.shares_log["compute_s"] == pytest.approx(0.0, abs=1e-12)


def test_compute_draft_and_host_without_a_link_each_cost_what_they_take() -> None:
    # Predicted 4 * 0.02 + 0.03 + 0.01 = 0.12 s. Alone: compute 0.1 -> 0.14, draft 0.05 -> 0.14, host 0.005 -> 0.115,
    # where 0.002 of host and 0.003 that nothing explains are the host's. Together 0.155 s.
    resident = plan(performance(round_s=0.12, link_s=None))
    measured = performance(round_s=0.155, compute_s=0.1, draft_s=0.05, host_s=0.002, unexplained_s=0.003, link_s=None)
    found = attribution(report(measured, resident))
    assert found.shares_log == pytest.approx(
        {
            "tokens_per_round": 0.0,
            "compute_s": math.log(0.12 / 0.14),
            "draft_s": math.log(0.12 / 0.14),
            "host_s": math.log(0.12 / 0.115),
        }
    )
    assert found.unexplained_log == pytest.approx(
        math.log(0.12 / 0.155) - 2 * math.log(0.12 / 0.14) - math.log(0.12 / 0.115)
    )


def test_fewer_tokens_per_round_cost_in_proportion() -> None:
    # 1.5 instead of 2 tokens in rounds of the same length: ln(1.5 / 2) = -0.2877
    found = attribution(report(performance(tokens=1.5)))
    assert found.shares_log["tokens_per_round"] == pytest.approx(-0.28768, abs=1e-5)
    assert found.unexplained_log == pytest.approx(0.0, abs=1e-12)


def test_what_no_component_explains_is_stated() -> None:
    # Everything as predicted but the speed, 4 instead of 5 tok/s: all of ln(4 / 5) is left over
    found = attribution(report(performance(speed=4.0)))
    assert set(found.shares_log.values()) == {0.0}
    assert found.unexplained_log == pytest.approx(math.log(4 / 5))


def test_disk_before_the_link_slows_with_it() -> None:
    # Reads of 0.1 s through one staging buffer and copies of 0.05: 4 * 0.15 = 0.6 s in turns; all twice as long, 1.2
    made = plan()
    staged = [
        unit.model_copy(update={"source": "disk", "read_s": 0.1, "copy_s": 0.05}) if unit.kind == "layer" else unit
        for unit in made.units
    ]
    changes = {"units": tuple(staged), "staging": {"num_buffers": 1, "buffer_bytes": 10 * MIB}}
    content = made.model_copy(update=changes).model_dump(mode="json", warnings=False)
    staged_plan = Plan.model_validate_json(json.dumps(content))
    found = attribution(report(performance(link_s=0.8), staged_plan))
    assert found.shares_log["link_busy_s"] == pytest.approx(math.log(0.6 / 1.2))


def test_run_without_a_link_where_one_was_predicted_has_no_share_of_it() -> None:
    assert "link_busy_s" not in attribution(report(performance(link_s=None))).shares_log


# --- rows ---


def test_error_is_what_was_measured_above_the_prediction() -> None:
    comparison = compare(report(performance(ttft_s=0.6, draft_s=0.0285)))
    late, draft = row(comparison, "first token"), row(comparison, "draft")
    assert (late.p10, late.p50, late.p90, late.measured) == pytest.approx((0.45, 0.5, 0.55, 0.6))
    assert late.error_frac == pytest.approx(0.2)  # 0.6 / 0.5 - 1
    assert late.is_inside is False
    assert draft.error_frac == pytest.approx(-0.05)  # 0.0285 / 0.03 - 1
    assert draft.is_inside is True
    assert late.share_log is None
    assert row(comparison, "tok/s").share_log == comparison.attribution.total_log


def test_error_of_what_was_not_predicted_is_unknown() -> None:
    made = plan(performance(draft_s=0.0))
    found = row(compare(report(performance(draft_s=1e-6), made)), "draft")
    assert (found.error_frac, found.is_inside) == (None, None)
    assert error_frac(0.0, 1.0) is None


@pytest.mark.parametrize(
    ("measured_mib", "is_inside"),
    # Planned 60 + 40 = 100 MiB: never under, and at most 1.08 times what was measured; 100 / 1.08 = 92.6
    [(100, True), (93, True), (92, False), (101, False)],
)
def test_memory_that_cannot_be_told_apart_is_held_against_both(measured_mib: int, is_inside: bool) -> None:
    comparison = compare(report(performance(total_bytes=measured_mib * MIB)))
    memory = row(comparison, "memory")
    assert (memory.p50, memory.measured, memory.is_inside) == (100 * MIB, measured_mib * MIB, is_inside)
    assert not {"device memory", "host memory"} & {entry.component.label for entry in comparison.rows}


def test_what_only_one_side_knows_is_no_component() -> None:
    assert components_of(PREDICTED, Performance()) == ()
    names = [component.name for component in components_of(PREDICTED, Performance(ttft_s=1.0, device_bytes=1))]
    assert names == ["ttft_s", "device_bytes"]


def test_names_of_components_are_unique() -> None:
    assert len({component.name for component in COMPONENTS}) == len({entry.label for entry in COMPONENTS}) == 13


def test_other_request_than_planned_is_said() -> None:
    same, other = Workload(prompt_tokens=10, new_tokens=20), Workload(prompt_tokens=512, new_tokens=256)
    assert compare(report(PREDICTED, plan(workload=same))).note is None
    note = compare(report(PREDICTED, plan(workload=other))).note
    assert note == "planned for a prompt of 512 tokens and 256 of text, run with 10 and 20"


# --- several reports ---


def test_accuracy_of_several_runs() -> None:
    # Predicted 0.5 s (0.45 to 0.55). Measured 0.54, 0.5, 0.4, errors 0.08, 0 and -0.2: the medians are 0 and 0.08.
    # P90 of 0, 0.08, 0.2 lies 0.8 from the second to the third: 0.176. Inside: two of three; width 0.1 / 0.5.
    found = accuracies([compare(report(performance(ttft_s=ttft_s))) for ttft_s in (0.54, 0.5, 0.4)])
    late = next(entry for entry in found if entry.component.name == "ttft_s")
    assert late.num_runs == 3
    assert late.bias_frac == pytest.approx(0.0)
    assert late.median_error_frac == pytest.approx(0.08)
    assert late.p90_error_frac == pytest.approx(0.176)
    assert late.coverage_frac == pytest.approx(2 / 3)
    assert late.width_frac == pytest.approx(0.2)


def test_accuracy_leaves_out_runs_that_predicted_nothing_of_a_component() -> None:
    without = report(performance(draft_s=1e-6), plan(performance(draft_s=0.0)))
    found = accuracies([compare(without), compare(report(performance(draft_s=0.0315)))])
    draft = next(entry for entry in found if entry.component.name == "draft_s")
    assert (draft.num_runs, draft.coverage_frac) == (1, 1.0)
    assert draft.bias_frac == pytest.approx(0.05)
    assert next(entry for entry in found if entry.component.name == "ttft_s").num_runs == 2


# --- what is refused ---


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (plan(Performance(device_bytes=1, host_bytes=1)), "without measurements"),
        (plan(predicted_p10=None), "no intervals"),
        (plan(predicted_p90=Performance()), "intervals leave out the tok/s"),
        (plan(performance(), units=(plan().units[0].model_copy(update={"compute_s": None}),)), "embedding 0 compute_s"),
    ],
)
def test_plan_without_predictions_is_refused_with_what_to_do(made: Plan, why: str) -> None:
    with pytest.raises(BadInputError, match=why) as caught:
        compare(report(PREDICTED, made))
    assert "planner recommend" in caught.value.remedy
    assert caught.value.exit_code == 3


def test_run_too_short_for_a_speed_is_refused() -> None:
    measured = PREDICTED.model_copy(update={"generated_tokens_per_s": None})
    with pytest.raises(BadInputError, match="ended after 20 tokens"):
        compare(report(measured))


# --- the command ---


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"run-{index}.json" for index in range(4)]
    for index, path in enumerate(paths):
        report(performance(round_s=0.4 + 0.02 * index, link_s=0.4 + 0.02 * index)).write(path)
    return paths


def test_command_shows_rows_the_rest_and_a_summary(files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    command(files[3:])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(files[3])
    assert lines[1].split() == ["component", "P10", "P50", "P90", "measured", "inside", "error", "on", "tok/s"]
    # 0.46 s instead of 0.4: 2 / 0.46 = 4.35 tok/s, -13.0 %, ln = -0.140
    link = next(line for line in lines if line.startswith("link busy"))
    assert link.split()[2:] == ["360.0", "ms", "400.0", "ms", "440.0", "ms", "460.0", "ms", "no", "+15.0%", "-14.0%"]
    assert lines[2].split()[4:] == ["4.35", "no", "-13.0%", "-14.0%"]
    assert any(line.startswith("unexplained") for line in lines)
    assert any(line.startswith("1 run ") for line in lines)
    assert max(map(len, lines)) <= 120
    assert "\x1b" not in "".join(lines)


def test_command_shows_many_reports_as_their_summary_alone(
    files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command(files)
    out = capsys.readouterr().out
    assert out.startswith("4 runs")
    assert "run-0.json" not in out
    assert "tok/s" in out


def test_command_prints_one_json_document(files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    command(files, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert [entry["report"] for entry in document["reports"]] == [str(path) for path in files]
    first, last = document["reports"][0], document["reports"][3]
    assert first["components"]["round_s"]["predicted"] == 0.4
    assert last["components"]["link_busy_s"]["share_log"] == pytest.approx(last["tokens_per_s_log"])
    assert last["unexplained_log"] == pytest.approx(0.0, abs=1e-12)
    assert document["summary"]["tokens_per_round"]["num_runs"] == 4


def test_tokens_per_round_are_told_by_kind_of_draft(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drafts = {
        "chain": ChainDraft(model="models/draft", fingerprint="1" * 32, draft_len=4, dtype="bf16"),
        "ngram": NgramDraft(num_nodes=8, max_depth=8),
        "none": NoDraft(),
    }
    paths: list[Path] = []
    for kind, measured in (("chain", 1.6), ("chain", 2.6), ("ngram", 3.0), ("none", 1.0)):
        paths.append(tmp_path / f"{len(paths)}.json")
        report(performance(tokens=measured), plan(draft=drafts[kind])).write(paths[-1])
    found = {entry.draft_kind: entry for entry in tokens_by_kind([compare(Report.read(path)) for path in paths])}
    assert set(found) == {"chain", "ngram"}
    of_chain = found["chain"]
    assert (of_chain.num_runs, of_chain.predicted) == (2, 2.0)
    assert of_chain.measured == pytest.approx(2.1)
    assert of_chain.median_error_frac == pytest.approx(0.05)
    command(paths, as_json=True)
    document = json.loads(capsys.readouterr().out)["tokens_per_round"]
    assert document["ngram"] == {"num_runs": 1, "predicted": 2.0, "measured": 3.0, "median_error_frac": 0.5}
    command(paths)
    shown = capsys.readouterr().out
    assert "chain" in shown
    assert "ngram" in shown


def test_every_bad_file_is_named(files: list[Path], tmp_path: Path) -> None:
    absent, unplanned = tmp_path / "absent.json", tmp_path / "unplanned.json"
    report(PREDICTED, plan(Performance())).write(unplanned)
    with pytest.raises(BadInputError, match="cannot compare") as caught:
        command([files[0], absent, unplanned])
    assert str(absent) in caught.value.what
    assert str(unplanned) in caught.value.what
    assert str(files[0]) not in caught.value.what
    assert "predicts no speed" in caught.value.why


def test_another_kind_of_file_is_not_said_to_be_of_another_version(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    profile().write(path)
    with pytest.raises(BadInputError, match="is no valid Report file") as refused:
        Report.read(path)
    assert "version is" not in refused.value.what
    assert "Extra inputs are not permitted" in refused.value.why
