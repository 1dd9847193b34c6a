"""Plans, budgets and machines on the command line: what runs as planned, and what is refused with which code."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import DRAFT, PROMPT, TARGET, Command, generate, generate_json, refused

from planner.contracts.plan import Plan

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]  # each case loads a model


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
