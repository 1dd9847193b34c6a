"""Models found in folders and in the hub's cache; what is hostile comes to a reason, never to the end of the list."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_models import TinyModel, byte_tokenizer, copy_of
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertForMaskedLM

from planner.contracts.errors import BadInputError
from planner.contracts.model_shape import ModelShape
from profiles import demo_folder
from runtime import find_drafts
from runtime.find_drafts import LocalModel, check_can_draft, find_models, local_folder, read_shape, reason

BYTES = byte_tokenizer()
COMMIT, OLD_COMMIT = "c" * 40, "d" * 40


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache in place of the user's."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def models(tiny_model: TinyModel, tmp_path: Path) -> Path:
    """A folder with a target, a draft beside it, and a folder that is no model."""
    folder = tmp_path / "models"
    for index, name in enumerate(("target", "draft")):
        copy_of(tiny_model("llama", seed=index), folder / name)
    (folder / "photos").mkdir()
    return folder


def names(found: list[LocalModel]) -> list[str]:
    return [Path(model.name).name for model in found]


def why(folder: Path, **changes: str) -> str:
    """The reason for which a folder is refused; empty where it is not."""
    model = LocalModel(name="m", folder=folder, **changes)
    try:
        read_shape(model)
        check_can_draft(model, BYTES)
    except BadInputError as error:
        return reason(model, error)
    return ""


def download(cache: Path, hub_id: str, folder: Path, commit: str = COMMIT, ref: str | None = "main") -> Path:
    """Put a model into the cache as a download lies there."""
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    for made in (repository / "blobs", repository / "refs", snapshot):
        made.mkdir(parents=True, exist_ok=True)
    if ref is not None:
        (repository / "refs" / ref).write_text(commit)
    for file in folder.iterdir():
        blob = repository / "blobs" / f"{commit[0]}-{file.name}"
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("..") / ".." / "blobs" / blob.name)
    return snapshot


# --- folders ---


def test_models_beside_the_target_are_found_and_it_itself_is_not(models: Path) -> None:
    assert names(find_models(models / "target", [])) == ["draft"]


def test_named_folders_are_searched_three_levels_deep(models: Path, tmp_path: Path) -> None:
    for depth in (0, 3, 4):
        copy_of(models / "draft", tmp_path.joinpath("more", *"abcd"[:depth], f"at{depth}"))
    found = names(find_models(models / "target", [tmp_path / "more"]))
    assert found == ["at0", "draft"]  # at3 is the fourth level
    assert "at3" in names(find_models(models / "target", [tmp_path / "more" / "a"]))


def test_each_folder_is_listed_once(models: Path) -> None:
    (models / "link").symlink_to(models / "draft")
    assert names(find_models(models / "target", [models, models])) == ["draft"]


def test_links_in_a_circle_end_the_search_nowhere(models: Path) -> None:
    (models / "self").symlink_to("self")
    (models / "photos" / "up").symlink_to(models)
    assert names(find_models(models / "target", [models])) == ["draft"]


def test_a_folder_that_cannot_be_read_is_listed_as_such(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = Path.iterdir

    def denied(folder: Path) -> Iterator[Path]:
        if folder.name == "photos":
            raise PermissionError(13, "Permission denied")
        return listing(folder)

    monkeypatch.setattr(Path, "iterdir", denied)
    found = find_models(models / "target", [])
    assert [(Path(model.name).name, model.why_unread) for model in found] == [
        ("draft", None),
        ("photos", "Permission denied"),
    ]
    with pytest.raises(BadInputError, match="Permission denied"):
        read_shape(found[1])


def test_a_search_without_end_ends_and_says_so(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find_drafts, "MOST_FOLDERS", 2)
    (last,) = find_models(models / "target", [models / "photos" / ".."])[-1:]
    assert "the search ends after 2 folders" in (last.why_unread or "")


def test_a_named_folder_that_does_not_exist_is_an_error(models: Path) -> None:
    with pytest.raises(BadInputError, match="there is no folder"):
        find_models(models / "target", [models / "nowhere"])


def test_names_are_relative_below_the_working_folder(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models)
    assert [model.name for model in find_models(Path("target"), [])] == ["draft"]


def test_names_of_strangers_cannot_steer_the_terminal(models: Path) -> None:
    (models / "draft").rename(models / "\x1b[2J")
    (model,) = find_models(models / "target", [])
    assert model.name.endswith("\\x1b[2J")
    read_shape(model)


# --- the hub's cache ---


def test_downloads_are_found_by_id_and_other_revisions_by_theirs(
    models: Path, cache: Path, tiny_model: TinyModel
) -> None:
    download(cache, "owner/small", models / "draft", OLD_COMMIT, ref=None)
    download(cache, "owner/small", models / "draft")
    (cache / "datasets--owner--small").mkdir()
    found = find_models(tiny_model("llama"), [])
    assert [model.name for model in found if "owner" in model.name] == ["owner/small", f"owner/small@{OLD_COMMIT}"]
    assert read_shape(found[-2]).name == "owner/small"


def test_a_downloaded_target_is_found_by_id_branch_and_commit(models: Path, cache: Path) -> None:
    snapshot = download(cache, "owner/big", models / "target")
    for name in ("owner/big", "owner/big@main", f"owner/big@{COMMIT}"):
        assert local_folder(name) == snapshot
    assert find_models(snapshot, []) == []


def test_a_path_wins_over_a_hub_id(models: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download(cache, "models/target", models / "draft")
    monkeypatch.chdir(models.parent)
    assert local_folder("models/target") == Path("models/target")


@pytest.mark.parametrize("name", ["owner/unknown", "owner/big@v9", f"{'x' * 300}/{'x' * 300}"])
def test_a_model_that_was_never_downloaded_is_refused_without_asking_the_hub(
    name: str, models: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download(cache, "owner/big", models / "target")
    monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("the network was asked"))
    with pytest.raises(BadInputError, match="not on this machine"):
        local_folder(name)


def test_a_name_that_is_no_model_is_refused(models: Path) -> None:
    with pytest.raises(BadInputError, match="there is no model"):
        local_folder(str(models / "nothing"))


def test_a_damaged_cache_costs_only_what_is_damaged(models: Path, cache: Path) -> None:
    download(cache, "owner/good", models / "draft")
    os.mkfifo(cache / "models--owner--good" / "refs" / "pipe")
    (cache / "models--owner--empty").mkdir()
    (cache / "models--owner--file").write_text("no folder")
    lost = download(cache, "owner/lost", models / "draft")
    (cache / "models--owner--lost" / "blobs" / "c-model.safetensors").unlink()
    pipe = download(cache, "owner/pipe", models / "draft", ref=None)
    os.mkfifo(cache / "models--owner--pipe" / "refs" / "main")
    found = find_models(models / "target", [])
    assert [model.name for model in found[1:]] == ["owner/good", "owner/lost", f"owner/pipe@{COMMIT}"]
    assert "cannot be found" in why(lost)
    assert why(pipe) == ""


def test_comparing_asks_no_network(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("the network was asked"))
    assert why(models / "draft") == ""


# --- what cannot draft ---


def test_another_tokenizer_is_named_by_its_first_other_token(models: Path) -> None:
    reordered = AutoTokenizer.from_pretrained(demo_folder("draft"))
    reordered.save_pretrained(models / "draft")
    assert "the draft has another tokenizer than the target: token 0 is" in why(models / "draft")


def test_an_encoder_is_no_decoder(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    BertForMaskedLM(BertConfig(vocab_size=256, **sizes)).save_pretrained(tmp_path)
    assert why(tmp_path) == "it is not a decoder: its architecture is 'BertForMaskedLM'"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True},
            "an encoder before its decoder",
        ),
        ({"model_type": "unheard-of"}, "cannot be built"),
        ({"model_type": "vit", "architectures": None}, "no causal language model of type 'vit'"),
        ({"auto_map": {"AutoConfig": "x.Y"}, "model_type": "unheard-of"}, "code of its own, which is never run"),
        ({"quantization_config": {"quant_method": "awq"}}, "it is quantised with awq"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"head_dim": None, "num_attention_heads": 1000}, "head_dim is None"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
    ],
    ids=str,
)
def test_configs_that_lie_are_refused_for_it(changes: dict[str, object], reason: str, models: Path) -> None:
    file = models / "draft" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    assert reason in why(models / "draft")


def test_a_config_without_end_is_not_parsed(models: Path) -> None:
    with (models / "draft" / "config.json").open("w") as file:
        file.truncate(11 * 2**20)
    assert "config.json is too large" in why(models / "draft")


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '{"model_type": "llama", "model_type": "x"}', "\xff"])
def test_a_broken_config_is_a_reason(text: str, models: Path) -> None:
    (models / "draft" / "config.json").write_bytes(text.encode("latin-1"))
    assert "config.json" in why(models / "draft")


def test_a_pickled_checkpoint_is_refused_by_name(models: Path) -> None:
    (models / "draft" / "model.safetensors").rename(models / "draft" / "pytorch_model.bin")
    assert why(models / "draft").startswith("it holds pickle weights")


def test_a_folder_of_gguf_files_is_listed_and_searched_on(models: Path) -> None:
    (models / "photos" / "small.gguf").write_bytes(b"GGUF")
    copy_of(models / "draft", models / "photos" / "below")
    found = find_models(models / "target", [models / "photos"])
    assert names(found) == ["photos", "below", "draft"]
    assert why(found[0].folder).startswith("it holds GGUF weights")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_pipe_in_place_of_a_file_never_blocks(name: str, models: Path) -> None:
    (models / "draft" / name).unlink()
    os.mkfifo(models / "draft" / name)
    assert f"{name} is not a regular file" in why(models / "draft")


def test_a_tokenizer_without_end_is_not_read(models: Path) -> None:
    with (models / "draft" / "tokenizer.json").open("w") as file:
        file.truncate(find_drafts.MOST_TOKENIZER_BYTES + 1)
    assert "tokenizer.json is too large" in why(models / "draft")


def test_a_missing_or_broken_tokenizer_is_a_reason(models: Path) -> None:
    (models / "draft" / "tokenizer.json").write_text("{}")
    assert "the tokenizer in it cannot be read" in why(models / "draft")
    (models / "draft" / "tokenizer.json").unlink()
    assert "cannot be read" in why(models / "draft")


def test_shapes_nobody_thought_of_are_a_reason(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(ModelShape, "from_config", fails)
    assert why(models / "draft") == "the model cannot be read: 'surprise'"


def test_reasons_are_one_printable_line(models: Path) -> None:
    error = BadInputError("it\x1b[2J", why="two\nlines", remedy="none")
    assert reason(LocalModel(name="m", folder=models), error) == "it\\x1b[2J: two lines"


def test_models_that_transformers_ships_pass(models: Path) -> None:
    assert why(models / "draft") == ""
    assert AutoModelForCausalLM.from_pretrained(models / "draft") is not None
