"""The commands as users meet them: what goes to stdout, what to stderr, and which exit code every fault has.

Most runs are made in this process, through the console script's own function; what needs a process of its own (pipes,
signals, the hub's environment) has one.
"""

import gc
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest
import torch
from safetensors.torch import load_file, save_file

from planner.contracts.plan import Plan
from planner.contracts.report import LlamaCppTimings, Report
from planner.contracts.safetensors_header import read_header
from profiles import demo_folder

pytestmark = pytest.mark.slow  # most cases start a process, which imports torch

TARGET, DRAFT = str(demo_folder("target")), str(demo_folder("draft"))
PROMPT = "def add(a, b):"
STREAMING = ["--link", "disk:direct", "--device-memory", "6MiB", "-c", "64"]
BOUND_S = 240  # of one process, on a machine whose disk may be busy
ENDING_S = 4  # after a signal: two are promised, twice that where others compute as well


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


# --- running a command ---


@dataclass(frozen=True, slots=True)
class Run:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def report(self) -> Report:
        """Stdout as the one JSON document that it must be."""
        return Report.model_validate_json(self.out)


class Stdin(io.TextIOWrapper):
    """A stdin with fixed bytes, perhaps of a terminal."""

    def __init__(self, content: bytes, *, is_terminal: bool = False) -> None:
        super().__init__(io.BytesIO(content), encoding="utf-8")
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


class Stdout(io.TextIOWrapper):
    """A stdout, into memory or an open descriptor, that calls back before its first write."""

    def __init__(
        self,
        before_write: Callable[[], None] | None = None,
        *,
        encoding: str = "utf-8",
        descriptor: int | None = None,
    ) -> None:
        self.content = io.BytesIO() if descriptor is None else os.fdopen(descriptor, "wb")
        super().__init__(self.content, encoding=encoding)
        self._before_write = before_write

    def write(self, text: str) -> int:
        if self._before_write is not None:
            call, self._before_write = self._before_write, None
            call()
        return super().write(text)

    def text(self) -> str:
        """What was written to memory."""
        if not isinstance(self.content, io.BytesIO):
            with suppress(OSError):
                self.content.close()
            return ""
        self.flush()
        return self.content.getvalue().decode(self.encoding)


class Command(Protocol):
    """Runs `runtime` (or another package) in this process."""

    def __call__(
        self, *arguments: str, package: str = "runtime", stdin: Stdin | None = None, stdout: Stdout | None = None
    ) -> Run: ...


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    from planner.cli import main as planner_main
    from runtime.cli import main as runtime_main

    mains = {"planner": planner_main, "runtime": runtime_main}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for name in ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str, package: str = "runtime", stdin: Stdin | None = None, stdout: Stdout | None = None) -> Run:
        out, err = stdout or Stdout(), Stdout()
        with monkeypatch.context() as patched:
            patched.setattr(sys, "argv", [package, *arguments])
            patched.setattr(sys, "stdin", stdin or Stdin(b""))
            patched.setattr(sys, "stdout", out)
            patched.setattr(sys, "stderr", err)
            with pytest.raises(SystemExit) as stop:
                mains[package]()
        assert isinstance(stop.value.code, int)
        return Run(stop.value.code, out.text(), err.text())

    yield run
    gc.unfreeze()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def generate(command: Command, *arguments: str) -> Run:
    """A short greedy run that must end well."""
    run = command("generate", PROMPT, "-n", "12", *arguments)
    assert run.code == 0, run.err
    return run


def refused(run: Run, code: int, *parts: str) -> None:
    """The run ended with the code, nothing on stdout, and three lines that hold the parts."""
    assert run.code == code, run.err
    assert run.out == ""
    lines = [line for line in run.err.splitlines() if not line.startswith("[transformers]")]
    assert [line[:7] for line in lines] == ["error: ", "  why: ", "  try: "], run.err
    for part in parts:
        assert part in run.err


def script(package: str) -> str:
    return str(Path(sys.executable).parent / package)


def subprocess_environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "GITHUB_ACTIONS")}
    return {**kept, "OMP_NUM_THREADS": "1", **changes}


def shell(line: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A shell line in which "$RUNTIME" "$@" stands for the command."""
    return subprocess.run(
        ["bash", "-c", line, "bash", *arguments],
        capture_output=True,
        check=False,
        timeout=BOUND_S,
        env=subprocess_environment(RUNTIME=script("runtime"), **environment),
    )


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


def generate_json(command: Command, *arguments: str) -> Report:
    run = command("generate", *arguments, "-n", "2", "--json")
    assert run.code == 0, run.err
    return run.report


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


# --- plans ---


@pytest.fixture(scope="module")
def streaming_plan() -> Plan:
    from runtime.api import Limits, make_plan

    return make_plan(
        TARGET, draft=DRAFT, limits=Limits(device="8MiB"), context_tokens=64, link="emulated:20GB/s", draft_len=3
    )


def altered(plan: Plan, folder: Path, change: Callable[[dict[str, object]], None]) -> str:
    """The path of a copy of the plan with a change."""
    content = json.loads(plan.to_json())
    change(content)
    (folder / "altered.json").write_text(json.dumps(content))
    return str(folder / "altered.json")


def test_planner_writes_what_runtime_runs(command: Command, tmp_path: Path) -> None:
    plan_path = tmp_path / "plan.json"
    options = [TARGET, "-md", DRAFT, "-c", "64", "--device-memory", "8MiB", "--slots", "3", "--link", "disk:cached"]
    written = command("plan", *options, "-o", str(plan_path), package="planner")
    assert (written.code, written.out, written.err) == (0, "", "")
    shown = command("plan", *options, package="planner")
    assert Plan.model_validate_json(shown.out) == Plan.read(plan_path)
    run = command("generate", PROMPT, "-n", "12", "--plan", str(plan_path), "--json")
    assert run.code == 0, run.err
    assert run.report.plan == Plan.read(plan_path)
    assert (run.report.plan.slots, run.report.text) == (3, generate(command, "--json").report.text)


@pytest.mark.parametrize(
    "option",
    [
        ["--target", TARGET],
        ["--draft", DRAFT],
        ["--no-spec"],
        ["--draft-len", "4"],
        ["--ctx-size", "64"],
        ["--dtype", "bf16"],
        ["--link", "disk"],
        ["--slots", "2"],
        ["--device-memory", "8MiB"],
        ["--target-memory", "8MiB"],
        ["--draft-memory", "8MiB"],
        ["--host-memory", "1GiB"],
        ["--headroom", "1GiB"],
    ],
    ids=lambda option: option[0],
)
def test_plan_beside_an_option_that_it_decides_is_refused(option: list[str], command: Command, tmp_path: Path) -> None:
    refused(command("generate", PROMPT, "--plan", str(tmp_path / "plan.json"), *option), 2, "--plan decides", option[0])


def set_draft(plan: dict[str, object]) -> None:
    plan.update(draft={"kind": "self", "num_layers": 2, "draft_len": 4})


def set_unit(**changes: object) -> Callable[[dict[str, object]], None]:
    def change(plan: dict[str, object]) -> None:
        units = plan["units"]
        assert isinstance(units, list)
        if "kind" in changes:
            units.append({**units[1], **changes})
        else:
            units[1].update(changes)

    return change


def set_devices(plan: dict[str, object]) -> None:
    plan["devices"] = [{"name": "cpu", "budget_bytes": 2**30}] * 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (set_draft, "kind self"),
        (set_unit(kind="expert", index=0), "kind expert"),
        *((set_unit(placement=placement), f"placement {placement}") for placement in ("host", "routed")),
        *((set_unit(codec=codec), f"codec {codec}") for codec in ("bf12", "q8", "nf4")),
        (set_devices, "2 devices"),
        (lambda plan: plan.update(batch=2), "batch 2"),
        (lambda plan: plan["draft"].update(device=1), "device 1"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_plan_with_a_variant_that_is_not_implemented_is_refused_by_name(
    change: Callable[[dict[str, object]], None], named: str, command: Command, streaming_plan: Plan, tmp_path: Path
) -> None:
    refused(command("generate", PROMPT, "--plan", altered(streaming_plan, tmp_path, change)), 5, named)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda plan: plan["target"].update(fingerprint="0" * 32), "another target"),
        (lambda plan: plan["draft"].update(fingerprint="0" * 32), "another draft"),
        (lambda plan: plan["target"].update(name=DRAFT), "another target"),
        (lambda plan: plan["units"].pop(), "describes another model"),
        (lambda plan: plan["units"].pop(0), "describes another model"),
        (lambda plan: plan["memory"].update(slots_bytes=2**50), "the plan takes"),
        (lambda plan: plan["memory"].update(host_weights_bytes=2**50), "on the host"),
        (lambda plan: plan["devices"][0].update(name="cuda:0"), "computes on cuda:0 over the link emulated"),
        (lambda plan: plan["devices"][0].update(name="tpu"), "computes on tpu"),
        (lambda plan: plan["devices"][0].update(name=""), "the link"),
    ],
)
def test_plan_of_another_model_or_machine_is_refused(
    change: Callable[[dict[str, object]], None], named: str, command: Command, streaming_plan: Plan, tmp_path: Path
) -> None:
    refused(command("generate", PROMPT, "--plan", altered(streaming_plan, tmp_path, change)), 5, named)


@pytest.mark.parametrize("text", ["{}", "not json", "[]", '{"schema_version": 2}', ""])
def test_file_that_is_no_plan_is_refused(text: str, command: Command, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    refused(command("generate", PROMPT, "--plan", str(tmp_path / "plan.json")), 3, "is no valid Plan file")
    refused(command("generate", PROMPT, "--plan", str(tmp_path / "absent.json")), 3, "cannot read")


@pytest.mark.parametrize("number", [2**62, 2**63, 2**70, -1, 10**12])
def test_no_number_in_a_plan_makes_a_traceback(
    number: int, command: Command, streaming_plan: Plan, tmp_path: Path
) -> None:
    changes: list[Callable[[dict[str, object]], None]] = [
        lambda plan: plan.update(context_tokens=number),
        lambda plan: plan.update(slots=number),
        lambda plan: plan["link"].update(latency_s=number),  # type: ignore[attr-defined]
        lambda plan: plan["draft"].update(device=number),  # type: ignore[attr-defined]
    ]
    for change in changes:
        run = command("generate", PROMPT, "--plan", altered(streaming_plan, tmp_path, change))
        assert run.code in (3, 5)
        assert run.out == ""


# --- budgets and machines ---


def test_budget_that_is_too_small_is_refused_with_the_bytes_of_each_part(command: Command) -> None:
    run = command("generate", PROMPT, "-n", "8", "--device-memory", "2MiB")
    refused(run, 4, "does not fit", "short of the budget 2.00 MiB", "2 slots 2.81 MiB", "KV cache", "draft 1.70 MiB")
    remedy = re.search(r"--device-memory (\w+)", run.err)
    assert remedy is not None
    assert command("generate", PROMPT, "-n", "8", "--device-memory", remedy[1], "-q").code == 0


def test_more_memory_than_the_machine_has_is_refused(command: Command) -> None:
    refused(command("generate", PROMPT, "--device-memory", "900TiB"), 4, "does not have 900.00 TiB to give")
    refused(command("generate", PROMPT, "--headroom", "900TiB"), 4, "to give")
    refused(command("generate", PROMPT, "--host-memory", "1MiB"), 4, "of host memory", "--host-memory")


def test_caps_of_target_and_draft_bind_within_the_device_budget(command: Command) -> None:
    capped = generate(command, "--device-memory", "30MiB", "--target-memory", "6MiB", "--json").report
    free = generate(command, "--device-memory", "30MiB", "--json").report
    assert capped.plan.streamed_bytes > 0 == free.plan.streamed_bytes
    assert capped.text == free.text
    refused(command("generate", PROMPT, "--draft-memory", "1MiB"), 4, "the draft needs", "--draft-memory 2MiB")


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without CUDA")
def test_cuda_link_without_a_cuda_device_is_refused(command: Command) -> None:
    refused(command("generate", PROMPT, "--link", "cuda"), 5, "cuda", "--link disk")


def test_context_ends_the_text_where_the_model_does(command: Command) -> None:
    prompt = "x = 1\n" * 500
    tokens = generate_json(command, prompt).prompt_tokens
    prompt = prompt * (2048 // tokens) + "y = 2\n" * ((2048 - 2048 // tokens * tokens - 8) // 6)
    run = command("generate", prompt, "--json")  # 256 tokens are asked for, and fewer are left
    assert run.code == 0, run.err
    assert run.report.plan.context_tokens == 2048
    assert run.report.prompt_tokens + run.report.generated_tokens == 2048
    assert run.report.finish_reason == "context"


def test_prompt_longer_than_the_context_is_refused_before_anything_is_loaded(command: Command) -> None:
    refused(command("generate", "word " * 100, "-c", "16"), 3, "cannot be continued", "the context is 16 tokens")
    refused(command("generate", "word " * 3000), 3, "cannot be continued", "the context is 2048 tokens")
    refused(command("generate", PROMPT, "-c", "4096"), 2, "made for at most 2048")


# --- models that do not run ---


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the demo pair's small model."""
    return Path(shutil.copytree(DRAFT, tmp_path / "model"))


def edit_config(folder: Path, **changes: object) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **changes}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def miss_a_shard(folder: Path) -> None:
    tensors = read_header(folder / "model.safetensors")
    weight_map = dict.fromkeys(tensors, "model-00001-of-00002.safetensors")
    weight_map[list(weight_map)[-1]] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def truncate(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 1_000_000)


def keep_only(folder: Path, name: str, content: bytes) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(content)


def keep_only_gguf(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    (folder / "model.q4.gguf").write_bytes(b"GGUF" + bytes(100))


def become_remote_code(folder: Path) -> None:
    (folder / "modeling_evil.py").write_text(f"open({str(folder / 'marker')!r}, 'w')")
    auto_map = {"AutoConfig": "modeling_evil.Config", "AutoModelForCausalLM": "modeling_evil.Model"}
    edit_config(folder, model_type="evil", auto_map=auto_map, trust_remote_code=True)


def point_with_lfs(folder: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (folder / "model.safetensors").write_bytes(pointer)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing shard": (miss_a_shard, "lacks shards"),
    "truncated": (truncate, "truncated"),
    "gguf": (keep_only_gguf, "holds GGUF weights"),
    "pickle": (lambda folder: keep_only(folder, "pytorch_model.bin", b"\x80\x04."), "holds pickle weights"),
    "lfs pointer": (point_with_lfs, "Git-LFS pointer"),
    "awq": (lambda folder: edit_config(folder, quantization_config={"quant_method": "awq"}), "quantised with awq"),
    "remote code": (become_remote_code, "code of its own, which is never run"),
    "unknown architecture": (lambda folder: edit_config(folder, model_type="nonsense"), "cannot be built"),
    "encoder": (lambda folder: edit_config(folder, model_type="bert"), "describes a bert"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "config of another width": (lambda folder: edit_config(folder, intermediate_size=9), "config.json describes"),
    "config of more layers": (lambda folder: edit_config(folder, num_hidden_layers=9), "no tensor of decoder layer"),
    "config of fewer layers": (
        lambda folder: edit_config(folder, num_hidden_layers=1),
        "which the model does not have",
    ),
    "config of other heads": (lambda folder: edit_config(folder, num_attention_heads=7), "config.json"),
    "config of no heads": (lambda folder: edit_config(folder, num_attention_heads=0), "num_attention_heads is 0"),
    "config of another table": (lambda folder: edit_config(folder, vocab_size=2048), "config.json describes"),
    "config of a padding outside": (lambda folder: edit_config(folder, pad_token_id=10**6), "cannot be built"),
    "config of a nonsensical rope": (lambda folder: edit_config(folder, rope_parameters={"rope_type": 3}), "model"),
    "config that unties": (lambda folder: edit_config(folder, tie_word_embeddings=False), "lacks lm_head.weight"),
    "extra tensor": (lambda folder: edit_weights(folder, lambda all_: all_.update(extra=torch.ones(2))), "holds extra"),
    "missing tensor": (lambda folder: edit_weights(folder, lambda all_: all_.pop("model.norm.weight")), "model.norm"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "the tokenizer in"),
    "damaged tokenizer": (lambda folder: (folder / "tokenizer.json").write_text('{"a":'), "the tokenizer in"),
    "tokenizer of no vocabulary": (
        lambda folder: (folder / "tokenizer.json").write_text('{"added_tokens": [], "model": {"type": "BPE"}}'),
        "the tokenizer in",
    ),
    "damaged generation settings": (
        lambda folder: (folder / "generation_config.json").write_text("["),
        "generation_config.json",
    ),
    "generation settings of another kind": (
        lambda folder: (folder / "generation_config.json").write_text("[]"),
        "generation_config.json",
    ),
    "end token that is no number": (
        lambda folder: (folder / "generation_config.json").write_text('{"eos_token_id": "x"}'),
        "which tokens end a text",
    ),
    "damaged chat template": (lambda folder: (folder / "chat_template.jinja").write_text("{{ x "), "chat template"),
    "chat template that refuses": (
        lambda folder: (folder / "chat_template.jinja").write_text("{{ raise_exception('no') }}"),
        "chat template",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_model_that_cannot_run_is_refused_in_three_lines(fault: str, command: Command, model: Path) -> None:
    break_it, named = BROKEN[fault]
    break_it(model)
    refused(command("generate", PROMPT, "-n", "2", "-m", str(model)), 3, named)
    assert not (model / "marker").exists(), "code from the folder was run"


def test_names_in_a_strangers_file_cannot_steer_the_terminal(command: Command, model: Path) -> None:
    name = "evil\x1b]52;c;cm0=\x07\r\nerror: all is well\x9b2J"
    edit_weights(model, lambda tensors: tensors.update({name: torch.ones(2)}))
    run = command("generate", PROMPT, "-m", str(model))
    refused(run, 3, "evil\\x1b]52;c;cm0=\\x07\\r\\nerror: all is well\\x9b2J")
    assert not {"\x1b", "\x07", "\r", "\x9b"} & set(run.err)


def test_model_that_is_nowhere_is_refused(command: Command, tmp_path: Path) -> None:
    for name in ("nowhere", str(tmp_path / "nowhere"), "~nobody-here/model", "a" * 5000, "a/b/c", "../..//x", ""):
        refused(command("generate", PROMPT, "-m", name), 3)


def test_draft_with_another_tokenizer_is_refused(command: Command, model: Path) -> None:
    content = json.loads((model / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    first, second = [token for token in vocabulary if token.isalpha()][:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (model / "tokenizer.json").write_text(json.dumps(content))
    refused(command("generate", PROMPT, "-m", TARGET, "-md", str(model)), 3, "another tokenizer", "--no-spec")
    assert command("generate", PROMPT, "-n", "2", "-m", TARGET, "-md", str(model), "--no-spec").code == 0


def test_logits_that_are_no_numbers_fail_the_self_check_before_any_text(command: Command, model: Path) -> None:
    edit_weights(model, lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))
    run = command("generate", PROMPT, "-m", str(model))
    assert run.code == 7
    assert run.out == ""
    assert "NaN among its logits" in run.err
    assert "Traceback" not in run.err


def test_traceback_is_shown_only_on_request(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAFTSTREAM_DEBUG", "1")
    run = command("generate", PROMPT, "-m", "nowhere")
    assert run.code == 3
    assert "Traceback" in run.err


# --- faults while the text is written ---


@pytest.fixture
def streamed_model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TARGET, tmp_path / "streamed"))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(1000))


@pytest.mark.parametrize("damage", [cut, overwrite])
def test_file_that_changes_under_the_run_ends_it_with_the_text_so_far(
    damage: Callable[[Path], None], command: Command, streamed_model: Path
) -> None:
    weights = streamed_model / "model.safetensors"
    arguments = ["generate", PROMPT, "-n", "40", "-m", str(streamed_model), "--no-spec", *STREAMING]
    expected = command(*arguments).out
    run = command(*arguments, stdout=Stdout(lambda: damage(weights)))
    assert run.code == 6
    assert run.out
    assert expected.startswith(run.out)
    assert len(run.out) < len(expected)
    assert "changed while the model was running" in run.err
    assert "generation" in run.err, "statistics are shown all the same"
    assert "Traceback" not in run.err


def test_file_that_is_replaced_under_the_run_is_read_on_with_a_warning(command: Command, streamed_model: Path) -> None:
    weights = streamed_model / "model.safetensors"
    arguments = ["generate", PROMPT, "-n", "20", "-m", str(streamed_model), "--no-spec", *STREAMING]
    expected = command(*arguments).out

    def replace() -> None:
        (streamed_model / "new").write_bytes(b"another model")
        (streamed_model / "new").replace(weights)

    run = command(*arguments, stdout=Stdout(replace))
    assert (run.code, run.out) == (0, expected)
    assert "warning: model.safetensors was replaced during the run" in run.err


def test_json_is_whole_after_a_fault(command: Command, streamed_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.cli.generate import _write_tokens

    def damage_then_write(*arguments: object, **options: object) -> None:
        cut(streamed_model / "model.safetensors")
        _write_tokens(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(sys.modules["runtime.cli.generate"], "_write_tokens", damage_then_write)
    run = command("generate", PROMPT, "-m", str(streamed_model), "--no-spec", *STREAMING, "--json")
    assert run.code == 6
    assert run.report.finish_reason == "error"


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


# --- pipes and descriptors ---


def test_reader_that_has_left_ends_the_run_with_the_code_of_a_broken_pipe(command: Command) -> None:
    for arguments in ([], ["--json"]):
        reading, writing = os.pipe()
        os.close(reading)
        run = command("generate", PROMPT, "-n", "4", *arguments, stdout=Stdout(descriptor=writing))
        assert run.code == 128 + signal.SIGPIPE
        assert "error" not in run.err


def test_full_disk_under_stdout_is_a_resource_failure(command: Command) -> None:
    for arguments in ([], ["--json"]):
        run = command(
            "generate", PROMPT, "-n", "4", *arguments, stdout=Stdout(descriptor=os.open("/dev/full", os.O_WRONLY))
        )
        assert run.code == 6
        assert "No space left on device" in run.err
    run = command("plan", DRAFT, package="planner", stdout=Stdout(descriptor=os.open("/dev/full", os.O_WRONLY)))
    assert run.code == 6
    assert "No space left on device" in run.err


@pytest.mark.slow
def test_reader_that_leaves_ends_the_run_without_a_traceback() -> None:
    run = shell('"$RUNTIME" generate "def add(a, b):" -n 99 | head -c 1; exit ${PIPESTATUS[0]}')
    assert run.returncode == 128 + signal.SIGPIPE, run.stderr
    assert b"Traceback" not in run.stderr
    assert b"Exception ignored" not in run.stderr


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("generate x >&-", 6),
        ("generate x --plan p --slots 2 2>/dev/full", 2),
        ("generate x --plan p --slots 2 2>&-", 2),
        ("generate <&-", 2),
        ("generate <&- >&- 2>&-", 6),
    ],
)
def test_closed_or_full_descriptors_leave_the_exit_code(line: str, code: int) -> None:
    run = shell(f'"$RUNTIME" {line}')
    assert run.returncode == code
    assert b"Traceback" not in run.stderr


# --- signals ---


def start_generating(*arguments: str) -> subprocess.Popen[bytes]:
    """A run that would take long, once it handles signals."""
    slow = ["--link", "emulated:200MB/s", "--device-memory", "14MiB", "-n", "900", "-t", "1"]
    process = subprocess.Popen(
        [script("runtime"), "generate", PROMPT, *slow, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=subprocess_environment(),
    )
    status = Path(f"/proc/{process.pid}/status")
    while not handles_signals(status.read_text()):
        time.sleep(0.005)
    return process


def handles_signals(status: str) -> bool:
    caught = re.search(r"SigCgt:\s*([0-9a-f]+)", status)
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def interrupt(process: subprocess.Popen[bytes], number: signal.Signals) -> Run:
    """Send the signal; the process must end by it soon, and quietly."""
    sent_s = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=BOUND_S)
    run = Run(process.returncode, out.decode(), err.decode())
    # While the interpreter itself ends, a signal has its default action again; a shell says the same code of that.
    assert run.code in (128 + number, -number), run.err
    assert "Traceback" not in run.err
    assert "Exception" not in run.err
    assert time.monotonic() - sent_s < ENDING_S
    return run


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)], ids=["SIGINT", "SIGTERM"]
)
def test_signal_while_writing_keeps_the_text_and_shows_statistics(number: signal.Signals) -> None:
    process = start_generating()
    assert process.stdout is not None
    assert process.stdout.read(1)
    run = interrupt(process, number)
    assert "interrupted" in run.err, "statistics of what there is"
    assert "generation" in run.err


def test_signals_at_the_start_end_the_run_at_once() -> None:
    for number, wait_s in ((signal.SIGINT, 0.0), (signal.SIGTERM, 0.3), (signal.SIGINT, 0.8)):
        process = start_generating()
        time.sleep(wait_s)
        run = interrupt(process, number)
        assert run.err == ""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_signal_at_any_time_ends_the_run_in_order(number: signal.Signals) -> None:
    moments = random.Random(number)
    for _ in range(6):
        process = start_generating()
        time.sleep(moments.uniform(0, 6))
        interrupt(process, number)


@pytest.mark.slow
def test_interrupted_json_is_whole() -> None:
    process = start_generating("--json")
    time.sleep(6)
    run = interrupt(process, signal.SIGINT)
    if run.out:  # else it had not begun to write
        assert run.report.finish_reason == "interrupted"
        assert run.report.text


@pytest.mark.slow
def test_signals_in_a_row_end_the_run() -> None:
    process = start_generating()
    assert process.stdout is not None
    process.stdout.read(1)
    for _ in range(5):
        process.send_signal(signal.SIGINT)
    interrupt(process, signal.SIGINT)


# --- the hub ---


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """HF_HOME with the demo pair in it, as downloads lie there."""
    for name, folder in (("target", TARGET), ("draft", DRAFT)):
        repository = tmp_path / "home" / "hub" / f"models--demo--{name}"
        snapshot = repository / "snapshots" / ("c" * 40)
        (repository / "blobs").mkdir(parents=True)
        (repository / "refs").mkdir()
        for ref in ("main", "v1.0"):
            (repository / "refs" / ref).write_text("c" * 40)
        snapshot.mkdir(parents=True)
        for index, file in enumerate(sorted(Path(folder).iterdir())):
            blob = repository / "blobs" / f"{index:064x}"
            shutil.copy(file, blob)
            (snapshot / file.name).symlink_to(Path("..") / ".." / "blobs" / blob.name)
    return tmp_path / "home"


def from_hub(hub: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    line = '"$RUNTIME" generate "def add(a, b):" -n 4 -t 1 "$@"'
    return shell(line, *arguments, HF_HOME=str(hub), HF_HUB_OFFLINE="1")


def test_models_are_found_in_the_hubs_cache_by_id_and_revision(hub: Path) -> None:
    run = from_hub(hub, "-m", "demo/target", "-md", "demo/draft@v1.0", "--json")
    assert run.returncode == 0, run.stderr
    report = Report.model_validate_json(run.stdout)
    assert report.target.name == "demo/target"
    assert json.loads(report.plan.draft.model_dump_json())["model"] == "demo/draft@v1.0"
    assert report.text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo/unknown", "demo/target@v9", "demo/target@" + "d" * 40])
def test_model_that_is_not_in_the_hubs_cache_is_refused_offline(name: str, hub: Path) -> None:
    run = from_hub(hub, "-m", name)
    assert (run.returncode, run.stdout) == (3, b"")
    assert b"cannot be had from the hub" in run.stderr
    assert b"Traceback" not in run.stderr


def test_names_that_the_hub_would_refuse_are_refused_here(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("demo/..", "-/-", "demo/unknown", "demo/" + "x" * 100):
        refused(command("generate", PROMPT, "-m", name), 3, "cannot be had from the hub")


def test_hub_that_fails_in_any_way_is_bad_input(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    failures: Sequence[Exception] = (
        HTTPError("the connection broke"),
        OSError("no route to host"),
        ValueError("Unknown scheme for proxy URL"),
        ImportError("Using SOCKS proxy, but the 'socksio' package is not installed."),
    )
    for failure in failures:

        def fail(*_: object, failure: Exception = failure, **__: object) -> str:
            raise failure

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        refused(command("generate", PROMPT, "-m", "demo/unknown"), 3, str(failure))
