"""Models that cannot run, and files that change under a run: which exit code and which words every fault has."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import DRAFT, PROMPT, STREAMING, TARGET, Command, Stdout, refused
from safetensors.torch import load_file, save_file

from planner.contracts.safetensors_header import read_header

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]  # each case loads a model


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
