"""`runtime generate` as users meet it: stdout and stderr, JSON, prompts, options and traces."""

import json
import os
import shutil
from pathlib import Path

import pytest
from commands import DRAFT, PROMPT, STREAMING, TARGET, Command, Stdin, Stdout, generate, generate_json, refused

from planner.contracts.report import LlamaCppTimings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]  # each case loads a model


# --- stdout, stderr, JSON ---


def test_stdout_is_the_text_alone_and_statistics_go_to_stderr(command: Command) -> None:
    run = generate(command)
    report = generate(command, "--json").report
    assert run.out == report.text + "\n"
    assert len(report.text) > 10
    for name in ("prompt ", "generation ", "draft ", "memory ", "tok/s", "12 tokens", "length"):
        assert name in run.err
    assert "predicted" not in run.out


def test_each_statistic_stays_on_one_line_when_piped(command: Command) -> None:
    lines = [line for line in generate(command, *STREAMING).err.splitlines() if line.strip()]
    assert [line.split()[0] for line in lines] == [
        *("prompt", "generation", "draft", "each", "disk", "memory", "predicted")
    ]


def test_quiet_says_nothing(command: Command) -> None:
    assert generate(command, "-q").err == ""


def test_nothing_is_coloured_when_piped(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for run in (generate(command), command("generate", "--nonsense"), command("generate", "--help")):
        assert "\x1b" not in run.out + run.err


def test_json_is_one_document_with_our_names_and_llama_cpps(command: Command) -> None:
    run = generate(command, "--json", *STREAMING)
    document = json.loads(run.out)
    assert document["text"]
    ours = "prompt_tokens prompt_s generated_tokens generated_s generated_tokens_per_s num_rounds num_draft_tokens"
    assert set(ours.split()) | {"text", "finish_reason", "predicted", "measured", "plan", "timings"} <= set(document)
    assert set(document["timings"]) == set(LlamaCppTimings.model_fields)
    report = run.report
    assert report.timings.prompt_n == report.prompt_tokens
    assert report.timings.predicted_n == report.generated_tokens == 12
    assert report.timings.draft_n_accepted == report.num_accepted_tokens
    assert report.timings.prompt_ms == pytest.approx(report.prompt_s * 1e3)
    assert sum(entry.num_emitted_tokens for entry in report.rounds) == report.generated_tokens - 1  # the first: prefill
    assert report.measured.streamed_bytes_per_pass == report.plan.streamed_bytes > 0
    assert report.predicted == report.plan.predicted
    assert report.seed is None
    assert "prompt" in run.err, "statistics are on stderr all the same"


def test_json_survives_a_stdout_that_cannot_write_all_characters(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "mod\u00e8le"
    shutil.copytree(DRAFT, folder)
    run = command("generate", PROMPT, "-n", "2", "-m", str(folder), "--json", stdout=Stdout(encoding="ascii"))
    assert run.code == 0, run.err
    assert run.report.target.name.endswith("mod?le")


# --- prompts ---


def test_prompt_comes_from_argument_pipe_dash_or_file(command: Command, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text(PROMPT)
    common = ("-n", "6", "-q")
    runs = [
        command("generate", PROMPT, *common),
        command("generate", *common, stdin=Stdin(PROMPT.encode())),
        command("generate", "-", *common, stdin=Stdin(PROMPT.encode())),
        command("generate", "--file", str(tmp_path / "prompt.txt"), *common),
        command("generate", "-f", str(tmp_path / "prompt.txt"), *common),
    ]
    assert len({(run.code, run.out) for run in runs}) == 1
    assert runs[0].code == 0


def test_file_and_pipe_are_taken_byte_for_byte(command: Command, tmp_path: Path) -> None:
    content = "a = 1\r\nb = 2\r\n"
    (tmp_path / "prompt.txt").write_bytes(content.encode())
    by_file = generate_json(command, "-f", str(tmp_path / "prompt.txt"))
    by_pipe = command("generate", "-n", "2", "--json", stdin=Stdin(content.encode())).report
    by_argument = generate_json(command, content)
    assert by_file.prompt_tokens == by_pipe.prompt_tokens == by_argument.prompt_tokens
    assert by_file.prompt_tokens > generate_json(command, content.replace("\r", "")).prompt_tokens


def test_two_prompts_and_none_are_refused(command: Command, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text(PROMPT)
    refused(command("generate", PROMPT, "-f", str(tmp_path / "prompt.txt")), 2, "two prompts")
    refused(command("generate", stdin=Stdin(b"", is_terminal=True)), 2, "no prompt")
    refused(command("generate", "-f", str(tmp_path / "absent.txt")), 3, "cannot read the prompt file")
    refused(command("generate", "-f", str(tmp_path)), 3, "cannot read the prompt file")


def test_prompt_that_is_no_utf8_is_refused(command: Command, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_bytes(b"caf\xe9")
    refused(command("generate", "-f", str(tmp_path / "prompt.txt")), 3, "UTF-8")
    refused(command("generate", stdin=Stdin(b"caf\xe9")), 3, "UTF-8")
    refused(command("generate", os.fsdecode(b"caf\xe9")), 3, "the prompt is not UTF-8")
    refused(command("generate", PROMPT, "--stop", os.fsdecode(b"\xff")), 3, "--stop is not UTF-8")
    refused(command("generate", PROMPT, "--system", os.fsdecode(b"\xff")), 3, "--system is not UTF-8")
    refused(command("generate", PROMPT, "-m", os.fsdecode(b"\xff")), 3, "there is no model")


def test_chat_is_refused_where_the_tokenizer_has_no_template(command: Command) -> None:
    refused(command("generate", PROMPT, "--chat"), 2, "cannot chat")
    refused(command("generate", PROMPT, "--system", "be brief"), 2, "cannot chat")


# --- options ---


def test_stop_strings_end_the_text_before_them(command: Command) -> None:
    text = generate(command, "-q").out.removesuffix("\n")
    stop = text[5:8]
    stopped = generate(command, "--json", "--stop", "never in it", "--stop", stop).report
    assert stopped.text == text[: text.index(stop)]
    assert stopped.finish_reason == "stop"


def test_seed_repeats_a_sampled_run(command: Command) -> None:
    sampled = ("--temp", "1.5", "--json")
    first, again, other = (generate(command, *sampled, "--seed", seed).report for seed in ("7", "7", "8"))
    assert (first.text, first.seed) == (again.text, 7)
    assert other.text != first.text
    unseeded = generate(command, *sampled).report
    assert unseeded.seed is not None
    assert generate(command, *sampled, "--seed", str(unseeded.seed)).report.text == unseeded.text


def test_aliases_are_the_same_options(command: Command) -> None:
    short = ["-m", TARGET, "-md", DRAFT, "-c", "64", "--num-speculative-tokens", "3", "--temperature", "0"]
    long = ["--target", TARGET, "--draft", DRAFT, "--ctx-size", "64", "--draft-len", "3", "--temp", "0"]
    by_short = command("generate", PROMPT, "-n", "6", "--json", *short).report
    by_long = command("generate", PROMPT, "--max-tokens", "6", "--json", *long).report
    assert (by_short.text, by_short.plan.draft, by_short.plan.context_tokens) == (
        by_long.text,
        by_long.plan.draft,
        by_long.plan.context_tokens,
    )
    assert by_short.generated_tokens == 6
    assert json.loads(by_short.plan.draft.model_dump_json())["draft_len"] == 3


def test_drafting_never_changes_greedy_text(command: Command) -> None:
    plain = generate(command, "--no-spec", "--json").report
    assert plain.plan.draft.kind == "none"
    assert plain.num_draft_tokens == 0
    for arguments in (["--draft-len", "1"], ["--draft-len", "9"], STREAMING, ["--link", "emulated:20GB/s,1us"]):
        assert generate(command, "--json", *arguments).report.text == plain.text


def test_verify_confirms_a_run(command: Command) -> None:
    report = generate(command, "--verify", "--json").report
    assert report.verify is not None
    assert report.verify.passed


@pytest.mark.parametrize(
    "option", ["--device-memory", "--target-memory", "--draft-memory", "--host-memory", "--headroom"]
)
def test_memory_without_a_unit_is_refused(option: str, command: Command) -> None:
    for size in ("12", "12G", "many", *(("0MiB",) if option != "--headroom" else ())):  # no headroom is allowed
        refused(command("generate", PROMPT, option, size), 2, f"{size!r} is not a memory size", "GiB")


@pytest.mark.parametrize(
    "link",
    ["emulated:25", "emulated:25GB", "emulated", "usb", "disk:fast", "emulated:1GB/s,5", f"emulated:{'9' * 400}GB/s"],
)
def test_link_that_does_not_exist_is_refused(link: str, command: Command) -> None:
    refused(command("generate", PROMPT, "--link", link), 2)


@pytest.mark.parametrize(
    ("option", "value"),
    [("--temp", "-1"), ("--temp", "nan"), ("--top-p", "0"), ("--top-k", "0"), ("--min-p", "1"), ("--seed", "-1")],
)
def test_sampling_out_of_bounds_is_refused(option: str, value: str, command: Command) -> None:
    refused(command("generate", PROMPT, option, value), 2, "cannot be sampled with")


@pytest.mark.parametrize(
    "arguments",
    [["--nonsense"], ["--dtype", "int8"], ["-n", "0"], ["-n", "many"], ["--draft-len", "65"], ["--slots", "0"]],
)
def test_usage_errors_exit_with_2_and_leave_stdout_alone(arguments: list[str], command: Command) -> None:
    run = command("generate", PROMPT, *arguments)
    assert (run.code, run.out) == (2, "")
    assert "Usage:" in run.err


# --- traces ---


def test_trace_is_a_chrome_trace_with_a_lane_each_for_link_compute_and_draft(command: Command, tmp_path: Path) -> None:
    generate(command, "--trace", str(tmp_path / "trace.json"), *STREAMING)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    lanes = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    spans = [event for event in events if event["ph"] == "X"]
    assert {"link", "compute", "draft"} <= {lanes[event["tid"]] for event in spans}
    assert min(event["ts"] for event in spans) == 0
    assert all(event["dur"] >= 0 and event["pid"] == 1 for event in spans)
    assert {event["ph"] for event in events} == {"M", "X"}
    copied = [event["name"] for event in spans if lanes[event["tid"]] == "link"]
    assert copied[0].startswith("layer ")


def test_trace_that_cannot_be_written_loses_no_text(command: Command, tmp_path: Path) -> None:
    expected = generate(command).out
    run = command("generate", PROMPT, "-n", "12", "--trace", str(tmp_path / "absent" / "trace.json"))
    assert (run.code, run.out) == (6, expected)
    assert "cannot write" in run.err
    assert "generation" in run.err
