"""A whole profile of a tiny pair: complete, found again by what it holds for, and refused input by name."""

from pathlib import Path

import pytest
import typer
from tiny_models import TinyModel
from typer.testing import CliRunner

from planner.cli.profile import profile as profile_command
from planner.contracts.errors import BadInputError, ResourceFailureError, UsageError
from planner.contracts.profile import MemoryMeasurement, Profile
from runtime.measure.cache import find_profile, profile_path
from runtime.measure.profile import ProfileOptions, measure_profile, profile_key, stored_path
from runtime.measure.prompts import Prompt, read_prompts, round_robin

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = [Prompt(domain=domain, text=f"{domain} of x and y") for domain in ("code", "prose")]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("DRAFTSTREAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def quick(**changes: object) -> ProfileOptions:
    return ProfileOptions(**{"is_quick": True, "is_forced": True, "prompt_tokens": 16, "new_tokens": 12, **changes})  # type: ignore[arg-type]


@pytest.mark.slow
def test_quick_profile_is_complete_and_found_again(tiny_model: TinyModel, tmp_path: Path) -> None:
    target, draft = tiny_model("llama"), tiny_model("llama", noise=0.3)
    out = tmp_path / "out.json"
    steps: list[str] = []
    options = quick(out=out, links=("emulated:1GB/s",))
    profile = measure_profile(target, [draft], options, PROMPTS, lambda progress: steps.append(progress.step))
    assert {entry.link for entry in profile.links} == {"disk:cached", "disk:direct", "host_memory"}
    parts = {"layer", "attention", "mlp", "head_chunk"}
    assert {row.unit for row in profile.compute} == {*parts, "pass", "edge", "embedding", "round", "ngram"}
    assert {row.num_tokens for row in profile.draft_passes} >= {1, 2}
    assert [recording.domain for recording in profile.acceptance] == ["code", "code", "prose", "prose"]
    assert Profile.read(out) == profile
    assert find_profile(profile_key(target, [draft])) == profile
    assert find_profile(profile_key(target)) == profile, "a profile with a draft serves to plan without one"
    assert find_profile(profile_key(target, [draft], num_threads=63)) is None
    assert find_profile(profile_key(tiny_model("qwen3"))) is None
    assert stored_path(profile, options).exists()
    assert not list((tmp_path / "cache").glob("*.journal")), "a complete run leaves no journal"


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    for out in (tmp_path / "missing" / "profile.json", tmp_path):
        with pytest.raises(ResourceFailureError, match=f"cannot write {out}"):
            measure_profile("no model, which would be next", [], quick(out=out), PROMPTS)


def test_profile_of_one_group_names_the_others_and_serves_nobody(tiny_model: TinyModel) -> None:
    target = tiny_model("llama")
    profile = measure_profile(target, [], quick(only=("acceptance",)), PROMPTS)
    assert len(profile.acceptance) == 2
    assert "links: not measured, left out by --only" in profile.notes
    assert find_profile(profile_key(target)) is None


def test_run_out_of_time_leaves_its_journal_and_is_taken_up(tiny_model: TinyModel, cache: Path) -> None:
    target = tiny_model("llama")
    options = quick(only=("acceptance",), max_seconds=1e-9)
    cut = measure_profile(target, [], options, PROMPTS)
    assert cut.acceptance == ()
    assert "acceptance: 2 of 2 steps not measured for lack of time" in cut.notes
    assert list(cache.glob("*.journal"))
    whole = measure_profile(target, [], quick(only=("acceptance",)), PROMPTS)
    assert len(whole.acceptance) == 2


def test_damaged_file_in_the_cache_counts_as_absent(tiny_model: TinyModel) -> None:
    key = profile_key(tiny_model("llama"))
    profile_path(key).write_text("{", encoding="utf-8")
    assert find_profile(key) is None


@pytest.mark.slow
def test_command_prints_a_summary_and_where_the_profile_is(tiny_model: TinyModel, cache: Path) -> None:
    target, draft = tiny_model("llama"), tiny_model("llama", noise=0.3)
    prompts = cache.parent / "prompts.txt"
    prompts.write_text("A paragraph that is long enough.\n", encoding="utf-8")
    app = typer.Typer()
    app.command()(profile_command)
    arguments = [str(target), "-md", str(draft), "--prompts", str(prompts), "--quick", "--force", "--threads", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert Path(lines[0].removeprefix("profile: ")).exists()
    for start in ("machine: ", "link disk:cached: ", "layer 0 and alike: ", f"draft {draft}: ", "own: ", "drift: "):
        assert any(line.startswith(start) for line in lines), (start, lines)
    as_json = CliRunner().invoke(app, [*arguments, "--only", "acceptance", "--json"])
    assert Profile.model_validate_json(as_json.stdout).acceptance


def test_context_longer_than_the_models_own_is_refused(tiny_model: TinyModel) -> None:
    with pytest.raises(UsageError, match="cannot be profiled"):
        measure_profile(tiny_model("llama"), [], quick(context_tokens=10_000), PROMPTS)


def test_draft_of_a_model_that_cannot_roll_back_is_refused_before_anything_is_measured(tiny_model: TinyModel) -> None:
    with pytest.raises(BadInputError, match="cannot speculate"):
        measure_profile(tiny_model("bamba"), [tiny_model("llama")], quick(), PROMPTS)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "no prompts"),
        (b"\n \n\n", "no prompts"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "cannot read the prompts"),
        (b"some text\0and more of it", "NUL"),
        (b'{"domain": "code"}', 'no "text"'),
        (b'{"text": "a text"', "line 1"),
        (b'{"text": "a text", "domain": 7}', "domain"),
    ],
)
def test_prompt_file_that_is_none_is_bad_input(content: bytes, match: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts"
    path.write_bytes(content)
    app = typer.Typer()
    app.command()(profile_command)
    result = CliRunner().invoke(app, ["--prompts", str(path)])
    assert isinstance(result.exception, BadInputError)
    assert result.exception.exit_code == 3
    with pytest.raises(BadInputError, match=match):
        read_prompts(path)


def test_plain_text_is_prompts_by_paragraph(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text(
        "The first paragraph,\nof two lines.\n\n\nshort\n\nThe second paragraph of all.\n", encoding="utf-8"
    )
    assert [prompt.text for prompt in read_prompts(path)] == [
        "The first paragraph,\nof two lines.",
        "The second paragraph of all.",
    ]


def test_prompts_take_turns_by_domain() -> None:
    prompts = [Prompt(domain=name[0], text=name) for name in ("a1", "a2", "a3", "b1", "c1", "c2")]
    texts = [prompt.text for prompt in round_robin(prompts, 2)]
    assert [text[0] for text in texts] == ["a", "b", "c", "a", "c"]
    assert len(set(texts)) == len(texts)


def test_prompts_are_drawn_from_the_whole_file_and_the_same_ones_again() -> None:
    prompts = [Prompt(domain="own", text=str(place)) for place in range(100)]
    drawn = round_robin(prompts, 10)
    assert drawn == round_robin(prompts, 10)
    places = sorted(int(prompt.text) for prompt in drawn)
    assert places[0] < 25
    assert places[5] < 75 <= places[-1]


def test_memory_is_measured_with_the_largest_draft(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    drafts = [tiny_model("llama"), tiny_model("mixtral")]
    sizes = [(draft / "model.safetensors").stat().st_size for draft in drafts]
    asked: list[str] = []

    def measure(_target: str, draft: str, *_: object) -> list[MemoryMeasurement]:
        asked.append(draft)
        return [MemoryMeasurement(part="host_overhead", num_bytes=1)]

    monkeypatch.setattr("runtime.measure.steps.measure_memory", measure)
    options = quick(is_quick=False, is_fresh=True, only=("memory",))
    for order in (drafts, drafts[::-1]):
        measure_profile(tiny_model("llama", seed=1), order, options, [])
    assert sizes[0] < sizes[1]
    assert asked == [str(drafts[1])] * 2
