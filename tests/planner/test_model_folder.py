import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import planner
from planner.contracts.errors import BadInputError
from planner.contracts.model_folder import INDEX_NAME, fingerprint, has_remote_code, open_model_folder

REPOSITORY = Path(planner.__file__).parent.parent
CONFIG: dict[str, object] = {"model_type": "llama", "hidden_size": 2, "rope_scaling": {"rope_type": "default"}}
SHARDS = {"model-00001-of-00002.safetensors": ["a", "b"], "model-00002-of-00002.safetensors": ["c"]}
FIRST, SECOND = SHARDS


def write_tensors(path: Path, names: list[str], *, dtype: str = "BF16", num_bytes: int = 8) -> None:
    """Writes a safetensors file of 2 x 2 tensors of two bytes a value, or as stated."""
    header = {
        name: {"dtype": dtype, "shape": [2, 2], "data_offsets": [idx * num_bytes, (idx + 1) * num_bytes]}
        for idx, name in enumerate(names)
    }
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(num_bytes * len(names)))


def write_config(folder: Path, **changes: object) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {"total_size": 24}, "weight_map": weight_map}))


def honest_map() -> dict[str, str]:
    return {name: shard for shard, names in SHARDS.items() for name in names}


def refused(path: Path, message: str) -> BadInputError:
    with pytest.raises(BadInputError, match=message) as caught:
        open_model_folder(path)
    assert str(path) in caught.value.what
    assert caught.value.remedy
    return caught.value


@pytest.fixture
def single(tmp_path: Path) -> Path:
    """A model of one file."""
    folder = tmp_path / "single"
    folder.mkdir()
    write_config(folder)
    write_tensors(folder / "model.safetensors", ["a", "b"])
    return folder


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A model of two shards and their index."""
    folder = tmp_path / "sharded"
    folder.mkdir()
    write_config(folder)
    write_index(folder, honest_map())
    for shard, names in SHARDS.items():
        write_tensors(folder / shard, names)
    return folder


# What is read


def test_a_single_file_is_read(single: Path) -> None:
    model = open_model_folder(single)
    assert (model.path, model.config, list(model.tensors)) == (single, CONFIG, ["a", "b"])


def test_the_tensors_of_all_shards_are_merged(sharded: Path) -> None:
    tensors = open_model_folder(sharded).tensors
    assert {name: entry.file.name for name, entry in tensors.items()} == honest_map()


def test_a_single_file_of_another_name_is_read_and_copies_and_adapters_are_ignored(single: Path) -> None:
    (single / "model.safetensors").rename(single / "weights.safetensors")
    for name in ("consolidated.safetensors", "adapter_model.safetensors"):
        write_tensors(single / name, ["other"])
    assert list(open_model_folder(single).tensors) == ["a", "b"]


def test_unrelated_files_beside_shards_are_ignored(sharded: Path) -> None:
    write_tensors(sharded / "consolidated.safetensors", ["other"])
    (sharded / "pytorch_model.bin").write_bytes(b"\x80\x04")
    (sharded / "model.q4.gguf").write_bytes(b"GGUF")
    assert len(open_model_folder(sharded).tensors) == 3


def test_python_infinity_in_a_config_is_read_as_transformers_reads_it(single: Path) -> None:
    write_config(single, time_step_limit=[0.0, float("inf")])
    assert open_model_folder(single).config["time_step_limit"] == [0.0, float("inf")]


def test_trust_remote_code_in_a_config_is_ignored_at_every_level(single: Path) -> None:
    write_config(single, trust_remote_code=True, text_config={"trust_remote_code": True, "layers": [{"n": 1}]})
    assert open_model_folder(single).config == {**CONFIG, "text_config": {"layers": [{"n": 1}]}}


def test_remote_code_is_reported_and_never_run(single: Path) -> None:
    marker = single / "marker"
    (single / "modeling_evil.py").write_text(f"open({str(marker)!r}, 'w')")
    assert not has_remote_code(open_model_folder(single).config)
    write_config(single, auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"}, trust_remote_code=True)
    assert has_remote_code(open_model_folder(single).config)
    write_config(single, text_config={"auto_map": {"AutoConfig": "modeling_evil.Evil"}})
    assert has_remote_code(open_model_folder(single).config)
    assert not marker.exists()


# Folders and configs that are refused


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "No such file")


def test_a_file_is_refused_by_its_format(tmp_path: Path) -> None:
    for name, message in (("m.Q4_K_M.gguf", "holds GGUF weights"), ("model.safetensors", "give its folder")):
        (tmp_path / name).write_bytes(b"GGUF")
        refused(tmp_path / name, message)


def test_foreign_formats_and_quantised_weights_are_refused(single: Path) -> None:
    write_tensors(single / "model.safetensors", ["l.qweight", "l.qzeros"])
    refused(single, "quantised with gptq or awq")
    write_config(single, quantization_config={"quant_method": "awq"})
    refused(single, "quantised with awq")
    (single / "model.safetensors").rename(single / "model.gguf")
    refused(single, "holds GGUF weights")


def test_a_folder_without_config_is_refused(single: Path) -> None:
    (single / "config.json").unlink()
    refused(single, "has no config.json")
    (single / "params.json").write_text("{}")
    refused(single, "vendor's own format")


MALFORMED_CONFIGS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is not JSON"),
    "list": (b"[]", "not a JSON object"),
    "not_utf8": (b"\xff", "not UTF-8"),
    "no_model_type": (b"{}", "states no model_type"),
    "model_type_number": (b'{"model_type": 3}', "states no model_type"),
    "model_type_empty": (b'{"model_type": ""}', "states no model_type"),
    "duplicate_key": (b'{"model_type": "a", "model_type": "b"}', "the key 'model_type' twice"),
    "deep": (b'{"model_type": "a", "x": ' + b"[" * 40 + b"]" * 40 + b"}", "nested too deeply"),
    "very_deep": (b'{"model_type": "a", "x": ' + b'{"x":' * 50_000, "nested too deeply"),
    "git_lfs_pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "html_page": (b"<!DOCTYPE html>", "web page"),
    "oversized": (b" " * (10 * 2**20 + 1), "too large"),
}


@pytest.mark.parametrize("fault", MALFORMED_CONFIGS)
def test_a_malformed_config_is_refused(fault: str, single: Path) -> None:
    content, message = MALFORMED_CONFIGS[fault]
    (single / "config.json").write_bytes(content)
    refused(single, message)


def test_a_config_that_is_a_pipe_or_a_folder_is_refused(single: Path) -> None:
    (single / "config.json").unlink()
    os.mkfifo(single / "config.json")
    refused(single, "not a regular file")
    (single / "config.json").unlink()
    (single / "config.json").mkdir()
    refused(single, "not a regular file")


# Files of weights


def test_a_damaged_shard_is_refused_by_its_name(sharded: Path) -> None:
    os.truncate(sharded / SECOND, 40)
    refused(sharded, f"{SECOND} is truncated")


def test_a_model_without_tensors_is_refused(single: Path) -> None:
    write_tensors(single / "model.safetensors", [])
    refused(single, "holds no tensors")


def test_several_files_without_an_index_are_refused(single: Path) -> None:
    (single / "model.safetensors").rename(single / "x.safetensors")
    write_tensors(single / "y.safetensors", ["c"])
    refused(single, "several safetensors files(.|\n)*x.safetensors, y.safetensors")


@pytest.mark.parametrize("keep_single", [True, False])
def test_shards_without_their_index_are_refused(keep_single: bool, single: Path) -> None:
    write_tensors(single / FIRST, ["c"])
    if not keep_single:
        (single / "model.safetensors").unlink()
    refused(single, f"shards without {INDEX_NAME}")


@pytest.mark.parametrize("weight_map", [None, [], {}, "model.safetensors"])
def test_an_index_without_a_weight_map_is_refused(weight_map: object, sharded: Path) -> None:
    write_index(sharded, weight_map)
    refused(sharded, "has no weight_map")


def test_a_malformed_or_oversized_index_is_refused(sharded: Path) -> None:
    for content, message in ((b"{", "is not JSON"), (b"[1]", "not a JSON object"), (b'{"a":1,"a":2}', "'a' twice")):
        (sharded / INDEX_NAME).write_bytes(content)
        refused(sharded, message)
    os.truncate(sharded / INDEX_NAME, 32 * 2**20 + 1)
    refused(sharded, "too large")


HOSTILE_NAMES = [
    "../outside/secret.safetensors",
    "/outside/secret.safetensors",
    "sub/model.safetensors",
    "sub\\model.safetensors",
    "C:model.safetensors",
    "..",
    ".",
    "",
    ".safetensors",
    "config.json",
    "pytorch_model.bin",
    "nul\0.safetensors",
    "line\nbreak.safetensors",
    "surrogate\ud800.safetensors",
    7,
    None,
    ["model.safetensors"],
]


@pytest.mark.parametrize("shard", HOSTILE_NAMES)
def test_a_shard_that_is_no_bare_name_is_refused(shard: object, sharded: Path) -> None:
    write_index(sharded, {**honest_map(), "c": shard})
    message = str(refused(sharded, "maps tensor 'c' to"))
    assert message.replace("\n", "").isprintable()


def test_all_missing_shards_are_listed(sharded: Path) -> None:
    write_index(sharded, {**honest_map(), "d": "model-00003-of-00004.safetensors"})
    (sharded / SECOND).unlink()
    refused(sharded, f"2 of 3 files are not there: {SECOND}, model-00003-of-00004.safetensors")


@pytest.mark.parametrize("extra", ["model-00003-of-00003.safetensors", "model.safetensors"])
def test_a_weight_file_that_the_index_does_not_list_is_refused(extra: str, sharded: Path) -> None:
    write_tensors(sharded / extra, ["d"])
    refused(sharded, f"mixes two downloads\n.*'{extra}' is in the folder")


def test_a_tensor_that_the_index_does_not_list_is_refused(sharded: Path) -> None:
    write_tensors(sharded / SECOND, ["c", "d"])
    refused(sharded, f"{SECOND} holds tensor 'd', and {INDEX_NAME} does not list it")


def test_a_listed_tensor_that_is_not_there_is_refused(sharded: Path) -> None:
    write_index(sharded, {**honest_map(), "d": SECOND, "e": SECOND})
    refused(sharded, rf"places tensor 'd' in {SECOND}, and it is not there \(2 such\)")


def test_a_tensor_in_another_shard_than_listed_is_refused(sharded: Path) -> None:
    write_index(sharded, {"a": FIRST, "b": SECOND, "c": SECOND})
    refused(sharded, f"places tensor 'b' in {SECOND}, and it is in {FIRST}")


@pytest.mark.parametrize("listed", [FIRST, SECOND])
def test_a_tensor_in_two_shards_is_refused(listed: str, sharded: Path) -> None:
    write_tensors(sharded / SECOND, ["c", "b"])
    write_index(sharded, {**honest_map(), "b": listed})
    refused(sharded, f"tensor 'b' is in both {FIRST} and {SECOND}")


# Links


def test_a_hugging_face_cache_is_read_through_its_links(sharded: Path, tmp_path: Path) -> None:
    snapshot = cached(sharded, tmp_path / "models--org--name")
    model = open_model_folder(snapshot)
    assert {entry.file.name for entry in model.tensors.values()} == set(SHARDS)
    assert fingerprint(model) == fingerprint(open_model_folder(sharded))


def test_a_blob_that_was_not_downloaded_is_a_missing_shard(sharded: Path, tmp_path: Path) -> None:
    snapshot = cached(sharded, tmp_path / "models--org--name")
    (snapshot / SECOND).resolve().unlink()
    refused(snapshot, f"1 of 2 files are not there: {SECOND}")


def test_a_link_within_the_folder_and_a_linked_folder_are_read(single: Path, tmp_path: Path) -> None:
    (single / "model.safetensors").rename(single / "blob")
    (single / "model.safetensors").symlink_to("blob")
    (tmp_path / "alias").symlink_to(single)
    assert len(open_model_folder(tmp_path / "alias").tensors) == 2


@pytest.mark.parametrize("name", ["config.json", INDEX_NAME, FIRST])
def test_a_link_out_of_the_folder_is_refused(name: str, sharded: Path, tmp_path: Path) -> None:
    (sharded / name).rename(tmp_path / "elsewhere")
    (sharded / name).symlink_to(tmp_path / "elsewhere")
    refused(sharded, f"{name} links out of the model folder")


def test_a_link_from_a_cache_to_the_blobs_of_another_repository_is_refused(sharded: Path, tmp_path: Path) -> None:
    mine, other = cached(sharded, tmp_path / "models--a"), cached(sharded, tmp_path / "models--b")
    (mine / FIRST).unlink()
    (mine / FIRST).symlink_to((other / FIRST).resolve())
    refused(mine, "links out of the model folder")


def test_a_circle_of_links_is_refused(single: Path) -> None:
    (single / "model.safetensors").unlink()
    (single / "model.safetensors").symlink_to("model.safetensors")
    refused(single, "cannot be found(.|\n)*(circle|Too many levels)")


def test_nothing_outside_a_hostile_folder_is_opened(sharded: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    write_tensors(outside / "secret.safetensors", ["c"])
    opened: list[str] = []
    listening = True

    def listen(event: str, arguments: tuple[object, ...]) -> None:
        if listening and event == "open":
            opened.append(str(arguments[0]))

    sys.addaudithook(listen)  # stays for the process, so it goes deaf below
    try:
        for shard in (*HOSTILE_NAMES, str(outside / "secret.safetensors")):
            write_index(sharded, {**honest_map(), "c": shard})
            opened.clear()
            refused(sharded, "maps tensor 'c' to")
            assert {Path(name).name for name in opened} == {"config.json", INDEX_NAME}
        write_index(sharded, honest_map())
        (sharded / SECOND).unlink()
        (sharded / SECOND).symlink_to("../outside/secret.safetensors")
        opened.clear()
        refused(sharded, "links out")
        assert opened
        assert all(Path(name).parent == sharded and Path(name).name != SECOND for name in opened)
    finally:
        listening = False


# Fingerprint


def test_the_fingerprint_is_the_same_in_another_place_and_for_another_writer(sharded: Path, tmp_path: Path) -> None:
    before = fingerprint(open_model_folder(sharded))
    assert re.fullmatch("[0-9a-f]{32}", before)
    copy = tmp_path / "copy"
    shutil.copytree(sharded, copy)
    reordered = dict(reversed(CONFIG.items()))
    volatile = {"transformers_version": "9", "_name_or_path": "/x", "trust_remote_code": True}
    (copy / "config.json").write_text(json.dumps({**volatile, **reordered}, indent=2))
    assert fingerprint(open_model_folder(copy)) == before


def rename_tensor(folder: Path) -> None:
    write_tensors(folder / "model.safetensors", ["a", "renamed"])


def swap_tensors(folder: Path) -> None:
    write_tensors(folder / "model.safetensors", ["b", "a"])


def change_dtype(folder: Path) -> None:
    write_tensors(folder / "model.safetensors", ["a", "b"], dtype="F16")


def change_size(folder: Path) -> None:
    write_tensors(folder / "model.safetensors", ["a", "b"], dtype="F32", num_bytes=16)


def change_config(folder: Path) -> None:
    write_config(folder, rope_scaling={"rope_type": "yarn"})


def rename_file(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.safetensors")


@pytest.mark.parametrize("change", [rename_tensor, swap_tensors, change_dtype, change_size, change_config, rename_file])
def test_the_fingerprint_changes_with_the_model(change: Callable[[Path], None], single: Path) -> None:
    before = fingerprint(open_model_folder(single))
    change(single)
    assert fingerprint(open_model_folder(single)) != before


# The modules themselves


def run_python(*arguments: str) -> str:
    run = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return run.stdout


def test_importing_the_modules_loads_no_framework() -> None:
    heavy = {"torch", "transformers", "safetensors", "numpy"}
    loaded = run_python("-c", "import sys, planner.contracts.model_folder; print(*sys.modules)")
    assert not heavy & set(loaded.split())


def test_the_same_faults_are_refused_under_optimised_python(sharded: Path, tmp_path: Path) -> None:
    traversal, unlisted, missing, quantised, pickle = (tmp_path / f"faulty-{idx}" for idx in range(5))
    for folder in (traversal, unlisted, missing, quantised, pickle):
        shutil.copytree(sharded, folder)
    write_index(traversal, {**honest_map(), "c": f"../sharded/{SECOND}"})
    write_tensors(unlisted / SECOND, ["c", "d"])
    (missing / SECOND).unlink()
    write_config(quantised, quantization_config={"quant_method": "awq"})
    for name in (INDEX_NAME, *SHARDS):
        (pickle / name).unlink()
    (pickle / "pytorch_model.bin").write_bytes(b"\x80")
    script = """
import sys
from pathlib import Path
from planner.contracts.errors import BadInputError
from planner.contracts.model_folder import open_model_folder
for name in sys.argv[1:]:
    try:
        open_model_folder(Path(name))
    except BadInputError as error:
        print(error.what)
"""
    folders = (traversal, unlisted, missing, quantised, pickle)
    printed = run_python("-O", "-c", script, *map(str, folders)).splitlines()
    for line, part in zip(printed, ("maps tensor", "mixes", "lacks shards", "with awq", "pickle"), strict=True):
        assert part in line


def cached(model: Path, repository: Path) -> Path:
    """The model as `huggingface_hub` stores it: a snapshot of links into the repository's blobs."""
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "0123abcd"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for idx, file in enumerate(sorted(model.iterdir())):
        shutil.copy(file, blobs / f"{idx:064x}")
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", f"{idx:064x}"))
    return snapshot
