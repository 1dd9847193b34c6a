"""`planner show`: what each kind of file says as a page, at every width, and what is refused."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from made_up import DRAFT, MB, profile, request, spread
from rich.console import Console
from test_compare import PREDICTED, performance, plan, report

from planner.cli import main
from planner.contracts.base import ContractFile
from planner.contracts.performance import LinkSplit, Performance, RoundSplit
from planner.contracts.plan import (
    ChainDraft,
    Device,
    HybridDraft,
    MemorySplit,
    NgramDraft,
    Plan,
    SelfDraft,
    Staging,
    TreeDraft,
    Unit,
)
from planner.contracts.profile import AcceptanceCurve, DraftMeasurement, MemoryMeasurement, Profile
from planner.contracts.recognise import Shown, read_shown
from planner.contracts.recommendation import Recommendation
from planner.contracts.report import Report, RoundRecord
from planner.page import Part, bar
from planner.recommend import recommend
from planner.show import show
from planner.show_plan import layer_marks

MIB = 2**20
WIDTHS = (40, 54, 60, 80, 100, 160, 200)

Run = Callable[..., tuple[int, str, str]]


def page(record: Shown, width: int = 100, *, is_terminal: bool = False) -> str:
    """The record as it is printed."""
    out = io.StringIO()
    colours = "standard" if is_terminal else None
    show(Console(file=out, width=width, force_terminal=is_terminal, color_system=colours, highlight=False), record)  # type: ignore[arg-type]
    return out.getvalue()


def rows(text: str) -> dict[str, list[str]]:
    """The words behind each line's first word."""
    return {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}


def below(text: str, heading: str) -> list[str]:
    """The lines from a heading to the next empty one."""
    lines = text.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith(heading)) + 1
    stop = next((place for place in range(start, len(lines)) if not lines[place]), len(lines))
    return lines[start:stop]


def chain(draft_len: int = 3, device: int = 0) -> ChainDraft:
    return ChainDraft(model="draft", fingerprint="f", draft_len=draft_len, dtype="bf16", device=device)


def drafted_round(num_accepted: int) -> RoundRecord:
    split = RoundSplit(
        round_s=0.4, compute_s=0.08, waiting_for_weights_s=0.28, draft_s=0.03, host_s=0.01, unexplained_s=0.0
    )
    return RoundRecord(
        num_draft_tokens=3,
        draft_depth=3,
        num_accepted_tokens=num_accepted,
        num_emitted_tokens=num_accepted + 1,
        compute=split,
        link=LinkSplit(busy_s=0.4, waiting_for_slot_s=0.0, waiting_for_disk_s=0.0),
    )


DRAFTED = report(
    PREDICTED,
    plan(
        draft=chain(),
        predicted=PREDICTED.model_copy(update={"survival": (0.5, 0.25, 0.125)}),
    ),
).model_copy(
    update={
        "text": "one\ntwo",
        "num_draft_tokens": 12,
        "num_accepted_tokens": 4,
        "rounds": tuple(map(drafted_round, (0, 3, 0, 1))),
        "warnings": ("a file was replaced",),
    }
)
EMPTY = report(Performance(), plan(draft=chain())).model_copy(
    update={
        "finish_reason": "interrupted",
        "generated_tokens": 0,
        "generated_tokens_per_s": None,
        "prompt_s": 0.0,
        "num_rounds": 0,
    }
)
MEASURED = profile(
    drift_frac=0.05, notes=("quick: fewer points",), memory=(MemoryMeasurement(part="host_overhead", num_bytes=MIB),)
)
BARE = profile(links=(), compute=(), draft_passes=(), acceptance=())
RECOMMENDED = recommend(profile(), request(100 * MB))
EVERY = {"plan": plan(), "profile": MEASURED, "bare": BARE, "report": DRAFTED, "empty": EMPTY, "advice": RECOMMENDED}


@pytest.fixture
def planner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `planner` in this process; its exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["planner", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        assert isinstance(stop.value.code, int)
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return run


# --- any page ---


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("record", EVERY.values(), ids=EVERY)
def test_no_line_is_wider_than_the_console_nor_ends_in_blanks(record: Shown, width: int) -> None:
    text = page(record, width)
    assert text.isascii()
    assert "\x1b" not in text
    assert [line for line in text.splitlines() if len(line) > width or line != line.rstrip()] == []


@pytest.mark.parametrize("record", EVERY.values(), ids=EVERY)
def test_a_narrow_page_says_every_number_of_a_wide_one(record: Shown) -> None:
    def numbers(text: str) -> set[str]:
        return {word.strip("(),;") for word in text.split() if any(char.isdigit() for char in word)}

    lost = numbers(page(record, 70)) - numbers(page(record, 160))
    assert {word for word in lost if not word.isdigit()} == set()  # the map's lines begin at other layers


def test_colour_is_for_terminals(planner: Run, tmp_path: Path) -> None:
    assert "\x1b[" in page(plan(), is_terminal=True)
    plan().write(tmp_path / "plan.json")
    code, out, err = planner("show", str(tmp_path / "plan.json"))
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    assert out.startswith("plan for models/tiny\n")


def test_names_out_of_a_file_cannot_steer_the_terminal() -> None:
    hostile = "\x1b[2J\x9b31m\u202e[bold]"
    for record in (plan(), DRAFTED):
        changed = record.model_copy(update={"target": record.target.model_copy(update={"name": hostile})})
        text = page(changed)
        assert "\\x1b[2J\\x9b31m\\u202e[bold]" in text
        assert text.isascii()
    assert page(DRAFTED.model_copy(update={"warnings": (hostile,)})).isascii()
    notes = page(profile(notes=(hostile,), versions={hostile: hostile}))
    assert notes.isascii()


# --- plans ---


def test_bar_gives_each_part_its_share_of_the_columns() -> None:
    # Ends at 1/8, 4/8 and 5/8 of 16 columns: 2, 8 and 10
    parts = [Part(mark=mark, name=mark, amount=amount) for mark, amount in (("a", 1.0), ("b", 3.0), ("c", 1.0))]
    assert str(bar(parts, 8.0, 16)) == "aabbbbbbcc......"


def test_bar_of_more_than_the_whole_is_full() -> None:
    parts = [Part(mark="a", name="a", amount=3.0), Part(mark="b", name="b", amount=1.0)]
    assert str(bar(parts, 2.0, 8)) == "aaaaaabb"
    assert str(bar([], 0.0, 4)) == "...."


def test_memory_is_drawn_against_the_budget() -> None:
    fields = dict.fromkeys(MemorySplit.model_fields, 0)
    memory = MemorySplit(**{**fields, "residents_bytes": 50 * MIB, "slots_bytes": 20 * MIB, "target_kv_bytes": 5 * MIB})
    made = plan(memory=memory, devices=(Device(name="cuda:0", budget_bytes=100 * MIB),))
    lines = below(page(made, 102), "memory on cuda:0: 75.00 MiB of 100.00 MiB")
    assert lines[0] == "  " + "R" * 50 + "S" * 20 + "K" * 5 + "." * 25
    found = rows("\n".join(lines[2:]))
    assert (found["R"][-1], found["S"][-1], found["K"][-1], found["."][-1]) == ("50.0%", "20.0%", "5.0%", "25.0%")
    assert "D" not in found


def layer(index: int, placement: str, source: str, kind: str = "layer") -> Unit:
    return Unit.model_validate(
        {"kind": kind, "index": index, "placement": placement, "source": source, "wire_bytes": 1, "dense_bytes": 1}
    )


def test_layer_map_has_a_mark_for_each_placement() -> None:
    places = [("resident", "disk"), ("streamed", "ram"), ("streamed", "disk"), ("host", "ram"), ("routed", "ram")]
    units = tuple(layer(index, placement, source) for index, (placement, source) in enumerate(places))
    staging = Staging(num_buffers=2, buffer_bytes=1)
    made = plan(units=units, staging=staging)
    assert layer_marks(made) == "#=-hr"
    lines = below(page(made), "5 layers")
    assert lines[0] == "  0  #=-hr"
    assert lines[1:] == [
        "  # resident: 1",
        "  = streamed from host memory: 1",
        "  - streamed from disk: 1",
        "  h computed by the host: 1",
        "  r experts copied when chosen: 1",
    ]


def test_layer_map_tells_partly_resident_layers_by_the_part() -> None:
    pairs = [("resident", "resident"), ("resident", "streamed"), ("streamed", "resident"), ("streamed", "streamed")]
    units = tuple(
        layer(index, placement, "ram", kind)
        for index, parts in enumerate(pairs)
        for kind, placement in zip(("attention", "mlp"), parts, strict=True)
    )
    mixed = (layer(4, "streamed", "ram", "attention"), layer(4, "streamed", "disk", "mlp"))
    made = plan(units=(*units, *mixed), staging=Staging(num_buffers=2, buffer_bytes=1))
    assert layer_marks(made) == "#am=~"
    assert "m MLP resident, attention streamed: 1" in page(made)


def test_layer_map_is_wrapped_into_equal_numbered_lines() -> None:
    made = plan(units=tuple(layer(index, "streamed", "ram") for index in range(80)))
    ten = "=" * 10
    # 2 columns of indent and 4 of numbers leave 74 of 80: 6 groups of 11, so 2 lines of 4 each
    lines = below(page(made, 80), "80 layers")
    assert lines[:2] == [f"   0  {' '.join([ten] * 4)}", f"  40  {' '.join([ten] * 4)}"]
    assert below(page(made, 160), "80 layers")[0] == f"   0  {' '.join([ten] * 8)}"


def test_predictions_have_their_intervals() -> None:
    found = rows("\n".join(below(page(plan()), "predicted")))
    assert found["tok/s"] == ["4.50", "5.00", "5.50"]  # scaled by 0.9 and 1.1
    assert "tok/s                5.00 (4.50 to" in page(plan(), 40)


def test_what_was_not_predicted_is_no_zero() -> None:
    text = page(plan(predicted=Performance(), predicted_p10=None, predicted_p90=None))
    assert "not predicted: the plan was made by memory alone" in text
    assert below(page(plan(predicted_p10=None, predicted_p90=None)), "predicted")[1].split() == [
        "tok/s",
        "-",
        "5.00",
        "-",
    ]


@pytest.mark.parametrize(
    ("draft", "text"),
    [
        (chain(), "chain of 3, by draft in bf16"),
        (chain(device=1), "chain of 3, by draft in bf16, on a device that the plan lacks"),
        (NgramDraft(num_nodes=8, max_depth=4), "n-grams of 8"),
        (SelfDraft(num_layers=2, draft_len=3), "chain of 3 by the target's own first 2 layers"),
        *(
            (
                variant(model="d", fingerprint="f", num_nodes=8, max_depth=4, pass_nodes=4, dtype="bf16"),
                f"{name} of 8, depth 4, by d in bf16",
            )
            for variant, name in ((TreeDraft, "tree"), (HybridDraft, "hybrid"))
        ),
    ],
)
def test_draft_is_named_with_its_size(draft: object, text: str) -> None:
    assert text in page(plan(draft=draft))


# --- reports ---


def test_report_puts_predicted_beside_measured() -> None:
    slower = report(performance(round_s=0.5, link_s=0.5))
    found = rows("\n".join(below(page(slower, 120), "predicted beside measured")))
    assert found["tok/s"] == ["4.50", "5.00", "5.50", "4.00", "no", "-20.0%", "-22.3%"]
    bars = below(page(slower, 62), "each of 10 rounds")
    # 50 columns for 0.5 s: predicted 0.28 s of waiting are 28 columns, measured 0.38 s are 38
    assert [line.count("W") for line in bars[:2]] == [28, 38]


def test_report_says_how_it_ended_and_how_long_the_text_is() -> None:
    text = page(DRAFTED)
    assert "length: as many tokens as were asked for" in text
    assert "7 characters in 2 lines" in text
    assert "4 of 12 drafted accepted" in text
    assert below(text, "warnings") == ["  a file was replaced"]


def test_accepted_tokens_are_counted_by_round_beside_their_prediction() -> None:
    # Accepted 0, 3, 0, 1; of S = .5 .25 .125 the shares are 1 - .5, .5 - .25, .25 - .125, .125
    lines = below(page(DRAFTED), "accepted tokens of a round")
    assert [line.split()[:4] for line in lines[1:]] == [
        ["0", "2", "50.0%", "50.0%"],
        ["1", "1", "25.0%", "25.0%"],
        ["2", "0", "0.0%", "12.5%"],
        ["3", "1", "25.0%", "12.5%"],
    ]
    num_marks = [line.count("#") for line in lines[1:]]
    assert num_marks[2] == 0
    assert num_marks[0] == pytest.approx(2 * num_marks[1], abs=1)


def test_long_drafts_share_the_last_row() -> None:
    made = DRAFTED.model_copy(update={"rounds": tuple(map(drafted_round, (0, 15, 20, 40)))})
    assert below(page(made), "accepted tokens of a round")[-1].split()[:5] == ["15", "or", "more", "3", "75.0%"]


def test_run_without_rounds_is_not_measured_rather_than_zero() -> None:
    text = page(EMPTY)
    facts = rows(text)
    assert "first token not measured" in text
    assert facts["generation"] == ["0", "tokens,", "not", "measured"]
    assert "\n  memory      not measured\n" in text
    assert below(text, "rounds") == ["  not measured"]
    assert below(text, "accepted tokens of a round") == ["  not measured"]
    compared = below(text, "predicted beside measured")
    assert compared[0] == (
        "  not compared: the report has no speed to compare, as the run ended after 0 tokens (interrupted)"
    )
    assert all(line.endswith("not measured") for line in compared[2:])


def test_memory_that_is_measured_as_one_is_not_missing_its_parts() -> None:
    made = plan(predicted_p10=None, predicted_p90=None)
    text = page(report(performance(total_bytes=100 * MIB), made))
    compared = below(text, "predicted beside measured")
    assert [line.split()[0] for line in compared][-1] == "memory"
    assert not any("not measured" in line for line in compared)


# --- profiles ---


def test_profile_lists_what_was_measured() -> None:
    text = page(MEASURED, 120)
    assert "at most 5.0% slower than at its best" in text
    assert below(text, "links")[2].split()[:3] == ["disk:cached", "1.00", "GB/s"]
    compute = {line.split()[0]: line.split()[1:] for line in below(text, "compute alone")[2:]}
    assert compute["1"][0] == "2.00"
    assert compute["2"][0] == "2.10"
    assert compute["512"] == ["53.1", "0.00", "0.00", "1.00"]
    assert below(text, "draft draft")[1].split() == ["512", "3.00"]
    assert below(text, "memory beside")[0].split() == ["host", "overhead", "1.00", "MiB"]
    assert below(text, "notes") == ["  quick: fewer points"]


def test_passes_of_a_draft_stand_by_place_and_by_what_was_copied_beside_them() -> None:
    def made(position: int, duration_s: float, link: str | None = None, **changes: object) -> DraftMeasurement:
        return DraftMeasurement.model_validate(
            {
                "fingerprint": DRAFT.fingerprint,
                "position": position,
                "num_tokens": 1,
                "context_tokens": 0,
                "load_link": link,
                "load_bytes_per_s": 1e9 if link else 0.0,
                "duration_s": spread(duration_s).model_dump(),
                **changes,
            }
        )

    rows_of = (made(0, 2e-3), made(2, 3e-3), made(1, 4e-3), made(0, 5e-3, is_tree_level=True), made(1, 6e-3, "cuda"))
    text = page(profile(draft_passes=rows_of), 120)
    header, times = (line.split() for line in below(text, "draft draft:")[:2])
    assert " ".join(header) == "tokens pass 1 pass 2 pass 2 on tree level"
    assert times == ["1", "4.00", "3.00", "2.00", "5.00"]
    assert below(text, "draft draft beside copies over cuda")[1].split() == ["1", "6.00"]


def test_acceptance_is_replayed_by_kind_of_text() -> None:
    (code,) = MEASURED.acceptance
    two = profile(acceptance=(code, code.model_copy(update={"domain": "prose", "ranks": (0, *(1, 1, 1, 1) * 16)})))
    lines = below(page(two), "tokens per round with the draft draft")
    found = {line.split()[0]: line.split()[1:] for line in lines[2:]}
    # Ranks 0 0 0 1 over and over: 3 of a chain of 4 are right, then the target's own; where none is, one token a round
    assert found["code"][:2] == ["1", "65"]
    assert found["code"][3] == "4.00"
    assert found["prose"][2:5] == ["1.00", "1.00", "1.00"]
    assert found["all"][:2] == ["2", "130"]
    assert found["code"][5] == "-", "no probabilities were recorded, which trees need"


def test_what_a_profile_lacks_is_said() -> None:
    text = page(BARE)
    for heading in ("links", "compute alone", f"draft {DRAFT.name}", "tokens per round with the draft"):
        assert below(text, heading) == ["  not measured"], heading
    missing = "\n".join(below(text, "not measured"))
    for what in ("links:", "compute of a layer", "passes of the draft", "acceptance of the draft", "n-grams", "memory"):
        assert what in missing
    assert "not measured" not in rows(text)["drift"]
    assert "0.00" not in text


def test_published_acceptance_is_shown_with_its_source() -> None:
    curve = AcceptanceCurve(
        target="target", draft="draft", domain="chat", survival=(0.5, 0.2), is_same_pair=False, source="a paper"
    )
    text = page(profile(acceptance=(), curves=(curve,)))
    assert "draft, chat  0.50 0.20 (a paper)" in text
    assert "acceptance of the draft" not in text


# --- recommendations ---


def test_recommendation_gives_the_answer_why_and_the_plan() -> None:
    text = page(RECOMMENDED)
    assert text.startswith("speculate: ")
    positions = [text.index(title) for title in ("\nwhy\n", "\nknown from\n", "plan for target", "\n16 layers")]
    assert positions == sorted(positions)


# --- files ---


@pytest.mark.parametrize("record", EVERY.values(), ids=EVERY)
def test_file_is_told_by_its_content_and_printed_as_canonical_json(
    record: ContractFile, planner: Run, tmp_path: Path
) -> None:
    path = tmp_path / "anything.txt"
    path.write_text(json.dumps(json.loads(record.to_json())))
    assert read_shown(path) == record
    assert planner("show", str(path), "--json") == (0, record.to_json(), "")


def test_stdin_is_read_for_a_dash(planner: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan().write(path)
    monkeypatch.setattr("planner.contracts.recognise._STDIN_PATH", path)
    assert planner("show", "-")[1].startswith("plan for models/tiny\n")


NEWER = {**json.loads(plan().to_json()), "schema_version": 2}
BAD: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "it is empty"),
    "text": ("hello", "it is not JSON"),
    "bytes": (b"\xff\xfe\x00", "it is not JSON"),
    "deep": ("[" * 100_000, "it is not JSON"),
    "number": ("3", "no JSON object"),
    "list": ("[{}, {}]", "a list of 2"),
    "nothing": ("{}", "it holds no field"),
    "another program": ('{"traceEvents": []}', "traceEvents"),
    "newer": (json.dumps(NEWER), "schema version is 2"),
    "newer and strange": ('{"schema_version": 9, "a": 1}', "schema version is 9"),
    "newer within": (json.dumps({**json.loads(DRAFTED.to_json()), "plan": NEWER}), "schema version is 2"),
    "damaged": (json.dumps({**json.loads(plan().to_json()), "units": []}), "no valid Plan file"),
    "truncated": (plan().to_json()[:-40], "it is not JSON"),
    "machine": (profile().machine.to_json(), "is a Machine file"),
    "large": (" " * 11 * MIB, "larger than"),
}


@pytest.mark.parametrize(("content", "why"), BAD.values(), ids=BAD)
def test_what_is_no_file_of_ours_is_refused(content: str | bytes, why: str, planner: Run, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    code, out, err = planner("show", str(path))
    assert (code, out) == (3, "")
    assert why in err
    assert [line[:7] for line in err.splitlines()] == ["error: ", "  why: ", "  try: "]


def test_missing_file_and_folder_are_refused(planner: Run, tmp_path: Path) -> None:
    for path in (tmp_path / "absent.json", tmp_path):
        code, out, err = planner("show", str(path))
        assert (code, out) == (3, "")
        assert f"cannot read {path}" in err


def test_page_of_every_kind_is_tested() -> None:
    assert {type(record) for record in EVERY.values()} == {Plan, Profile, Report, Recommendation}
