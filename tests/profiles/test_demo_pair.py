"""The embedded demo pair, and the script that trains one like it."""

import json
import math
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig

import profiles
from profiles import Role, demo_folder, heldout_path
from profiles.training import corpus, recipe, train
from profiles.training.__main__ import main
from profiles.training.tokenizer import VocabularyError, train_tokenizer

ROLES: tuple[Role, ...] = ("target", "draft")
LONG_TEXT = "x = 1\n" * 100  # 600 characters


@pytest.fixture
def one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def tiny_model(seed: int) -> torch.nn.Module:
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    model: torch.nn.Module = train.build_model(LlamaConfig(**shape, num_hidden_layers=1, vocab_size=32), seed)
    return model


# --- what ships ---


@pytest.mark.parametrize("role", ROLES)
def test_package_holds_a_loadable_folder_for_each_role(role: Role) -> None:
    names = {file.name for file in demo_folder(role).iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names


def test_demo_pair_stays_under_25_megabytes() -> None:
    folder = heldout_path().parent
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 25e6


def test_demo_pair_carries_both_licences() -> None:
    folder = heldout_path().parent
    assert "Apache License" in (folder / "LICENSE").read_text(encoding="utf-8")
    assert "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2" in (folder / "LICENSE.PSF").read_text(encoding="utf-8")


@pytest.mark.parametrize("role", ROLES)
def test_shipped_architecture_is_the_one_that_the_recipe_builds(role: Role) -> None:
    saved_only = {"_name_or_path", "architectures", "dtype", "transformers_version"}
    shipped = AutoConfig.from_pretrained(demo_folder(role)).to_dict()
    built = recipe.llama_config(role).to_dict()
    assert {k: v for k, v in shipped.items() if k not in saved_only} == {
        k: v for k, v in built.items() if k not in saved_only
    }


def test_both_tokenizers_give_every_id_the_same_token() -> None:
    target, draft = (AutoTokenizer.from_pretrained(demo_folder(role)) for role in ROLES)
    assert target.get_vocab() == draft.get_vocab()
    assert len(target) == 4_096
    assert target.convert_ids_to_tokens([0, 1]) == ["<s>", "</s>"]


def test_every_shipped_held_out_file_obeys_the_hold_out_rule() -> None:
    rows = corpus.read_held_out(heldout_path())
    assert [row.domain for row in rows] == ["code"] * 32 + ["prose"] * 9
    assert all(corpus.is_held_out(row.path) for row in rows)


# --- the corpus ---


def test_hold_out_rule_is_divisibility_of_the_paths_sha256_by_50() -> None:
    # sha256sum and bc: "graphlib.py" f5af2518...ba modulo 50 = 0; "os.py" modulo 50 = 13.
    assert corpus.is_held_out("graphlib.py")
    assert not corpus.is_held_out("os.py")


def test_code_leaves_out_tables_packages_short_files_and_what_is_not_utf8(tmp_path: Path) -> None:
    kept = ("b.py", "json/decoder.py", "encodings.py")
    left_out = (
        "encodings/cp037.py",
        "pydoc_data/topics.py",
        "lib2to3/tests/data/infinite_recursion.py",
        "test/test_email/test_email.py",
        "site-packages/pkg/mod.py",
        "_sysconfigdata__linux.py",
        "notes.txt",
    )
    for path in (*kept, *left_out):
        write(tmp_path / path, LONG_TEXT)
    write(tmp_path / "short.py", "x = 1\n")
    (tmp_path / "latin1.py").write_bytes(LONG_TEXT.encode() + b"\xe9")
    assert [document.path for document in corpus.collect_code(tmp_path)] == sorted(kept)


def test_prose_is_named_alike_from_either_form_of_the_documentation(tmp_path: Path) -> None:
    write(tmp_path / "release" / "library" / "zlib.rst", LONG_TEXT)
    write(tmp_path / "built" / "library" / "zlib.rst.txt", LONG_TEXT)
    write(tmp_path / "release" / "conf.py", LONG_TEXT)
    from_release, from_built = (corpus.collect_prose(tmp_path / name) for name in ("release", "built"))
    assert from_release == from_built == (corpus.Document(domain="prose", path="library/zlib.rst.txt", text=LONG_TEXT),)


def test_folder_without_text_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(corpus.CorpusError, match=r"holds no prose .* such as Doc/"):
        corpus.collect_prose(tmp_path)


def test_text_without_a_held_out_file_is_refused() -> None:
    with pytest.raises(corpus.CorpusError, match="1 to train on and 0 held out"):
        corpus.split([corpus.Document(domain="code", path="os.py", text=LONG_TEXT)])


def test_held_out_file_keeps_the_first_4000_characters(tmp_path: Path) -> None:
    document = corpus.Document(domain="code", path="graphlib.py", text="é" * 5_000)
    corpus.write_held_out([document], tmp_path / "heldout.jsonl")
    assert json.loads((tmp_path / "heldout.jsonl").read_text(encoding="utf-8")) == {
        "domain": "code",
        "path": "graphlib.py",
        "text": "é" * 4_000,
    }


def test_text_too_short_for_the_vocabulary_is_refused() -> None:
    with pytest.raises(VocabularyError, match="train on more text"):
        train_tokenizer([LONG_TEXT])


# --- the training ---


def test_full_recipe_sees_the_token_counts_of_the_demo_pair() -> None:
    assert recipe.FULL.target.num_tokens == 14_213_120  # 3,470 steps x 16 x 256
    assert recipe.FULL.draft.num_tokens == 7_372_800  # 900 steps x 32 x 256


def test_rate_warms_up_over_100_steps_and_falls_to_5_percent() -> None:
    settings = recipe.FULL.target
    assert settings.rate_at(0) == pytest.approx(2e-5)  # 2e-3 / 100
    assert settings.rate_at(99) == settings.rate_at(100) == pytest.approx(2e-3)
    assert settings.rate_at(settings.num_steps - 1) == pytest.approx(1e-4)  # 5 % of 2e-3


def test_same_seed_trains_the_same_weights() -> None:
    settings = recipe.TrainSettings(num_steps=4, batch_sequences=2, sequence_tokens=8, peak_rate=1e-3)
    tokens_N = torch.arange(200, dtype=torch.int32) % 32
    states = []
    for seed in (1, 1, 2):
        torch.rand(1)  # what else the process has drawn must not matter
        model = tiny_model(seed)
        train.train(model, tokens_N, partial(train.next_token_loss, model), settings, seed, "tiny")
        states.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_distilling_a_model_from_itself_costs_its_own_entropy() -> None:
    model = tiny_model(0).eval()
    windows_BS = torch.arange(18).view(2, 9)
    log_probs_BTV = model(windows_BS[:, :-1]).logits.log_softmax(-1)
    entropy = -(log_probs_BTV.exp() * log_probs_BTV).sum(-1).mean().item()
    assert train.distillation_loss(model, model, windows_BS).item() == pytest.approx(entropy, rel=1e-5)
    assert entropy < math.log(32)


def test_stream_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(ValueError, match="3 tokens, a window needs 4"):
        train.random_windows(torch.zeros(3, dtype=torch.int32), 1, 4, torch.Generator())


# --- the command ---


def test_folder_that_holds_something_is_never_written_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "mine.txt", "keep")
    with pytest.raises(SystemExit) as exit_info:
        main(["--out", str(tmp_path)])
    assert exit_info.value.code == 2
    assert "name a new or an empty folder" in capsys.readouterr().err


def test_documentation_folder_without_sources_exits_with_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "docs").mkdir()
    assert main(["--out", str(tmp_path / "pair"), "--docs", str(tmp_path / "docs"), "--quick"]) == 3
    assert "holds no prose" in capsys.readouterr().err
    assert not (tmp_path / "pair").exists()


def test_help_does_not_wait_for_torch() -> None:
    program = "import sys, profiles.training.__main__; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(profiles.__file__).parents[1])


@pytest.mark.slow
def test_quick_run_learns_and_writes_a_loadable_pair(tmp_path: Path, one_thread: None) -> None:
    docs = tmp_path / "docs"
    for name in ("library/zlib.rst", "library/os.rst"):
        write(docs / name, LONG_TEXT)
    documents = (*corpus.collect_code(Path(sysconfig.get_path("stdlib"))), *corpus.collect_prose(docs))
    losses = train.train_pair(corpus.split(documents), recipe.QUICK, tmp_path / "pair")

    assert sum(losses.target[-3:]) < sum(losses.target[:3]) - 1.0
    assert sum(losses.draft[-3:]) < sum(losses.draft[:3])
    for role in ROLES:
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "pair" / role)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "pair" / role)
        assert model.dtype == torch.bfloat16
        token_ids = tokenizer.encode("import os\n")
        assert tokenizer.decode(token_ids) == "import os\n"
        assert model(torch.tensor([token_ids])).logits.shape == (1, len(token_ids), 4_096)


@pytest.mark.slow
def test_quick_command_prints_the_scores_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    assert main(["--out", str(tmp_path / "pair"), "--quick", "--target-steps", "2", "--draft-steps", "2"]) == 0
    printed = capsys.readouterr()
    head, code = printed.out.splitlines()
    assert head.split()[:2] == ["held-out", "tokens"]
    assert code.split()[0] == "code"
    assert "prose is left out" in printed.err
    assert "target: step 2 of 2" in printed.err
