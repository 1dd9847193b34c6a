"""The public interface: an ordinary transformers model that streams, and an engine that generates over and over."""

import gc
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tiny_models import FAST_LINK, VOCAB_SIZE, TinyModel, copy_of, placed, recounted, resident, stock_greedy
from torch import Tensor
from transformers import PreTrainedModel

import runtime
from planner.contracts.errors import BadInputError, PlanMismatchError, ResourceFailureError, UsageError
from planner.contracts.plan import DiskLink, EmulatedLink, Plan
from runtime.engine import Engine

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = tuple(range(60, 72))
NUM_TOKENS = 16
LANES = {"link", "disk reader"}


def lane_threads() -> list[str]:
    """Names of the threads that carry weights."""
    return [thread.name for thread in threading.enumerate() if thread.name in LANES]


@pytest.fixture(autouse=True)
def no_thread_survives() -> Iterator[None]:
    """Every test must end the threads that it started."""
    before = lane_threads()
    yield
    if lane_threads() != before:
        gc.collect()
    assert lane_threads() == before


def three_tiers(folder: Path, draft: Path | None = None) -> Plan:
    """Resident, in host memory and on disk; the head in chunks."""
    return placed(
        folder,
        streamed_layers=(0, 2),
        layers_on_disk=(2,),
        head_rows=(128, VOCAB_SIZE),
        streamed_chunks=(1,),
        draft=draft,
    )


# --- runtime.stream ---


@torch.inference_mode()
def sampled(model: PreTrainedModel, seed: int) -> list[int]:
    torch.manual_seed(seed)
    output = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=NUM_TOKENS, do_sample=True, temperature=0.9, top_k=50, top_p=0.95
    )
    tokens: list[int] = output[0].tolist()
    return tokens


def test_streamed_model_generates_as_the_stock_model_does_greedy_and_sampled(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama")
    stock = resident(folder)
    model = runtime.stream(folder, three_tiers(folder))
    assert isinstance(model, type(stock))
    assert stock_greedy(model, PROMPT, NUM_TOKENS) == stock_greedy(stock, PROMPT, NUM_TOKENS)
    assert [sampled(model, seed) for seed in range(3)] == [sampled(stock, seed) for seed in range(3)]
    model.streamed.close()


def test_streamed_model_takes_a_batch_with_padding_and_several_beams(tiny_model: TinyModel) -> None:
    folder = tiny_model("qwen3")
    stock, model = resident(folder), runtime.stream(folder, three_tiers(folder))
    inputs = {
        "input_ids": torch.tensor([[0, 0, 5, 6], [1, 2, 3, 4]]),
        "attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]),
    }
    with torch.inference_mode():
        expected, beams = (m.generate(**inputs, max_new_tokens=8, num_beams=3, do_sample=False) for m in (stock, model))
    assert torch.equal(beams, expected)
    model.streamed.close()


def test_streamed_model_takes_an_assistant_model(tiny_model: TinyModel) -> None:
    folder, draft = tiny_model("llama", "fp64"), resident(tiny_model("llama", "fp64", noise=0.1), "fp64")
    model = runtime.stream(folder, three_tiers(folder))
    with torch.inference_mode():
        output = model.generate(
            torch.tensor([PROMPT]), max_new_tokens=NUM_TOKENS, do_sample=False, assistant_model=draft
        )
    assert output[0, len(PROMPT) :].tolist() == stock_greedy(resident(folder, "fp64"), PROMPT, NUM_TOKENS)
    model.streamed.close()


def test_hidden_states_and_attentions_can_be_asked_for(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama")
    stock, model = resident(folder), runtime.stream(folder, placed(folder))
    with torch.inference_mode():
        expected, output = (m(torch.tensor([PROMPT]), output_hidden_states=True) for m in (stock, model))
    assert all(map(torch.equal, output.hidden_states, expected.hidden_states))
    model.streamed.close()


def test_stream_without_a_plan_makes_one(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama")
    model = runtime.stream(folder)
    assert stock_greedy(model, PROMPT, 4) == stock_greedy(resident(folder), PROMPT, 4)
    model.streamed.close()


def test_stream_takes_the_path_of_a_plan(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder = tiny_model("llama")
    plan = three_tiers(folder)
    plan.write(tmp_path / "plan.json")
    model = runtime.stream(str(folder), tmp_path / "plan.json")
    assert model.streamed.plan == plan
    model.streamed.close()


def test_dropped_model_ends_its_threads_and_gives_back_its_slots(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama")
    before = lane_threads()
    model = runtime.stream(folder, three_tiers(folder))
    stock_greedy(model, PROMPT, 2)
    assert Counter(lane_threads()) - Counter(before) == Counter({"link": 1, "disk reader": 1})
    slot, dropped = weakref.ref(model.streamed._stream.slots[0]), weakref.ref(model)
    del model
    gc.collect()
    assert dropped() is None
    gc.collect()  # the stream was kept alive by its threads
    assert slot() is None
    assert lane_threads() == before


def test_closed_model_raises_instead_of_computing_with_stale_weights(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama")
    model = runtime.stream(folder, placed(folder, link=DiskLink()))
    stock_greedy(model, PROMPT, 2)
    model.streamed.close()
    model.streamed.close()  # closing twice does no harm
    with pytest.raises(RuntimeError, match="closed"):
        model(torch.tensor([PROMPT]))


def test_name_of_the_function_is_not_shadowed_by_a_module() -> None:
    import runtime.model

    assert callable(runtime.stream)
    assert callable(runtime.load)


# --- runtime.load ---


def ids(engine: Engine, prompt: tuple[int, ...] = PROMPT, max_tokens: int = NUM_TOKENS) -> list[int | None]:
    """The token ids of one greedy generation."""
    return [piece.token_id for piece in engine.generate(prompt, max_tokens=max_tokens)]


def test_three_lines_of_the_readme_write_text(tiny_model: TinyModel, capsys: pytest.CaptureFixture[str]) -> None:
    folder, draft = tiny_model("llama"), tiny_model("llama", noise=0.1)
    with runtime.load(folder, draft=draft, device_memory="12MiB", context_tokens=64) as engine:
        for piece in engine.generate("def f(n):", max_tokens=NUM_TOKENS):
            print(piece.text, end="", flush=True)  # noqa: T201 - what the README shows
    tokens = stock_greedy(resident(folder), tuple(engine.tokenizer.encode("def f(n):")), NUM_TOKENS)
    assert capsys.readouterr().out == engine.tokenizer.decode(tokens)


def test_load_by_a_budget_streams_what_does_not_fit(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama")
    whole_bytes = runtime.make_plan(folder, context_tokens=64).memory.device_bytes
    with runtime.load(folder, device_memory=int(0.7 * whole_bytes), context_tokens=64) as engine:
        assert engine.plan.streamed
        assert engine.plan.memory.device_bytes <= 0.7 * whole_bytes
        assert ids(engine) == stock_greedy(resident(folder), PROMPT, NUM_TOKENS)


def test_load_needs_a_target_or_a_plan() -> None:
    with pytest.raises(TypeError, match="a target or a plan"):
        runtime.load()


def test_plan_file_runs_as_the_plan_does(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder, draft, path = tiny_model("llama"), tiny_model("llama", noise=0.1), tmp_path / "plan.json"
    plan = three_tiers(folder, draft)
    plan.write(path)
    assert Plan.read(path) == plan
    with runtime.load(plan=plan) as engine:
        expected = ids(engine)
    for loaded in (runtime.load(plan=path), runtime.load(folder, plan=str(path)), runtime.load(plan=path, draft=draft)):
        with loaded as engine:
            assert engine.plan == plan
            assert ids(engine) == expected


def test_plan_of_another_target_or_draft_is_refused(tiny_model: TinyModel) -> None:
    folder, other = tiny_model("llama"), tiny_model("qwen3")
    plan = three_tiers(folder, tiny_model("llama", noise=0.1))
    with pytest.raises(PlanMismatchError, match="another target than"):
        runtime.load(other, plan=plan)
    with pytest.raises(PlanMismatchError, match="another draft than"):
        runtime.load(plan=plan, draft=other)
    with pytest.raises(PlanMismatchError, match="another target than"):
        runtime.stream(other, plan)


def test_engine_generates_again_and_again_the_same(tiny_model: TinyModel) -> None:
    folder = tiny_model("gemma3")
    stock = resident(folder)
    other = tuple(range(200, 240))
    expected = {prompt: stock_greedy(stock, prompt, NUM_TOKENS) for prompt in (PROMPT, other)}
    with runtime.load(plan=three_tiers(folder, tiny_model("gemma3", noise=0.1))) as engine:
        for prompt in (PROMPT, PROMPT, other, PROMPT, other):
            assert ids(engine, prompt) == expected[prompt]


def test_sampled_run_is_repeated_by_its_seed(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama")
    settings = runtime.SamplingSettings(temperature=0.8, top_k=40, top_p=0.95, seed=11)
    with runtime.load(plan=three_tiers(folder, tiny_model("llama", noise=0.1))) as engine:
        runs = []
        for sampling in (settings, settings, runtime.SamplingSettings(temperature=0.8, seed=12)):
            generation = engine.generate(PROMPT, max_tokens=NUM_TOKENS, sampling=sampling)
            runs.append([piece.token_id for piece in generation])
            assert generation.report().seed == sampling.seed
        fresh = engine.generate(PROMPT, max_tokens=NUM_TOKENS, sampling=runtime.SamplingSettings(temperature=0.8))
        drawn = [piece.token_id for piece in fresh]
        seed = fresh.report().seed
        again = engine.generate(
            PROMPT, max_tokens=NUM_TOKENS, sampling=runtime.SamplingSettings(temperature=0.8, seed=seed)
        )
        assert [piece.token_id for piece in again] == drawn
    assert runs[0] == runs[1] != runs[2]


# --- interrupted ---


@pytest.mark.parametrize("num_read", [1, 2, 7])
def test_generation_after_one_that_was_left_midway_is_right(num_read: int, tiny_model: TinyModel) -> None:
    folder = tiny_model("mistral")
    expected = stock_greedy(resident(folder), PROMPT, NUM_TOKENS)
    with runtime.load(plan=three_tiers(folder, tiny_model("mistral", noise=0.1))) as engine:
        generation = engine.generate(tuple(range(100, 130)), max_tokens=NUM_TOKENS)
        for _ in zip(range(num_read), generation, strict=False):
            pass
        assert generation.report().finish_reason == "interrupted"
        assert ids(engine) == expected


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (RuntimeError, "layers.0.mlp"),
        (RuntimeError, "layers.1.self_attn"),
        (RuntimeError, "lm_head"),
        (KeyboardInterrupt, "layers.2.mlp.down_proj"),
        (KeyboardInterrupt, "norm"),
        (KeyboardInterrupt, "lm_head"),
    ],
)
def test_generation_after_an_error_within_a_pass_is_right(
    error: type[BaseException], place: str, tiny_model: TinyModel
) -> None:
    folder = tiny_model("llama")
    expected = stock_greedy(resident(folder), PROMPT, NUM_TOKENS)
    with runtime.load(plan=three_tiers(folder, tiny_model("llama", noise=0.1))) as engine:
        model = engine.target.streamed.model
        module = model.lm_head if place == "lm_head" else model.model.get_submodule(place)
        for num_calls in (1, 4):
            countdown = iter(range(num_calls))

            def fail(*_: object, left: object = countdown) -> None:
                if next(left, None) is None:  # type: ignore[call-overload]
                    raise error("pulled the plug")

            handle = module.register_forward_pre_hook(fail)
            generation = engine.generate(PROMPT, max_tokens=NUM_TOKENS)
            with pytest.raises(error, match="pulled the plug"):
                list(generation)
            handle.remove()
            assert generation.report().finish_reason == ("error" if error is RuntimeError else "interrupted")
            assert ids(engine) == expected


def test_generation_after_an_error_in_the_draft_is_right(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama")
    with runtime.load(plan=three_tiers(folder, tiny_model("llama", noise=0.1))) as engine:
        assert engine.draft is not None
        handle = engine.draft.streamed.model.model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ResourceFailureError, match="the draft failed"):
            ids(engine)
        handle.remove()
        assert ids(engine) == stock_greedy(resident(folder), PROMPT, NUM_TOKENS)


def test_text_that_another_one_overtook_is_refused_instead_of_going_on_wrongly(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama")
    with runtime.load(plan=three_tiers(folder)) as engine:
        overtaken = iter(engine.generate((1, 2, 3), max_tokens=NUM_TOKENS))
        next(overtaken)
        assert ids(engine) == stock_greedy(resident(folder), PROMPT, NUM_TOKENS)
        with pytest.raises(UsageError, match="another one was begun"):
            next(overtaken)


# --- ends of a text ---


def test_text_ends_at_each_end_token_of_the_generation_settings(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder = tiny_model("llama")
    tokens = stock_greedy(resident(folder), PROMPT, NUM_TOKENS)
    ends = [tokens[9], tokens[5]]
    copy = copy_of(folder, tmp_path / "model", eos_token_id=ends)
    first = min(map(tokens.index, ends))
    with runtime.load(plan=placed(copy, draft=tiny_model("llama", noise=0.1))) as engine:
        assert engine.end_tokens == set(ends)
        generation = engine.generate(PROMPT, max_tokens=NUM_TOKENS)
        assert [piece.token_id for piece in generation if piece.token_id is not None] == tokens[:first]
        assert generation.report().finish_reason == "stop"
        assert generation.report().generated_tokens == first
        assert generation.report().text == engine.tokenizer.decode(tokens[:first])


def test_context_ends_a_text_at_its_last_token(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama")
    expected = stock_greedy(resident(folder), PROMPT, 8)
    for draft in (None, tiny_model("llama", noise=0.1)):
        with runtime.load(plan=placed(folder, draft=draft, context_tokens=len(PROMPT) + 8)) as engine:
            generation = engine.generate(PROMPT, max_tokens=100)
            assert [piece.token_id for piece in generation] == expected
            assert generation.report().finish_reason == "context"


@pytest.mark.parametrize("max_tokens", [1, 2, 5])
def test_no_more_tokens_than_asked_for_are_written(max_tokens: int, tiny_model: TinyModel) -> None:
    folder = tiny_model("llama")
    with runtime.load(plan=placed(folder, draft=folder, draft_len=8)) as engine:
        generation = engine.generate(PROMPT, max_tokens=max_tokens)
        assert [piece.token_id for piece in generation] == stock_greedy(resident(folder), PROMPT, max_tokens)
        report = generation.report()
        assert (report.finish_reason, report.generated_tokens) == ("length", max_tokens)
        assert report.text == "".join(piece.text for piece in engine.generate(PROMPT, max_tokens=max_tokens))


def test_stop_string_ends_the_text_before_it(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama")
    with runtime.load(plan=placed(folder, draft=tiny_model("llama", noise=0.1))) as engine:
        text = engine.tokenizer.decode(stock_greedy(resident(folder), PROMPT, NUM_TOKENS))
        middle = len(text) // 2
        generation = engine.generate(PROMPT, max_tokens=NUM_TOKENS, stop=[text[middle : middle + 2]])
        assert "".join(piece.text for piece in generation) == text[: text.index(text[middle : middle + 2])]
        assert generation.report().finish_reason == "stop"


@pytest.mark.parametrize("length", [0, 128, 200])
def test_prompt_that_leaves_no_room_is_refused_with_the_context(length: int, tiny_model: TinyModel) -> None:
    with (
        runtime.load(plan=placed(tiny_model("llama"), context_tokens=128)) as engine,
        pytest.raises(BadInputError, match=f"prompt of {length} tokens cannot be continued\n.*128"),
    ):
        engine.generate([1] * length)


@pytest.mark.parametrize("stranger", [-1, VOCAB_SIZE, 10**9])
def test_prompt_of_a_token_that_the_model_does_not_know_is_refused(stranger: int, tiny_model: TinyModel) -> None:
    with (
        runtime.load(plan=placed(tiny_model("llama"), link=DiskLink())) as engine,
        pytest.raises(BadInputError, match=f"the token {stranger}\n.*0 to {VOCAB_SIZE - 1}"),
    ):
        engine.generate([1, stranger])


@pytest.mark.parametrize("link", [DiskLink(), FAST_LINK], ids=["from-disk", "from-host-memory"])
def test_streamed_model_raises_on_such_a_token_as_the_stock_model_does(
    link: DiskLink | EmulatedLink, tiny_model: TinyModel
) -> None:
    model = runtime.stream(tiny_model("llama"), placed(tiny_model("llama"), link=link))
    with pytest.raises(IndexError):
        model(torch.tensor([[1, VOCAB_SIZE]]))
    model.streamed.close()


# --- memory ---


def test_no_tensor_is_left_behind_by_a_generation(tiny_model: TinyModel) -> None:
    def live_bytes() -> int:
        gc.collect()
        tensors = [entry for entry in gc.get_objects() if issubclass(type(entry), Tensor)]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        return sum(storages.values())

    folder = tiny_model("gemma3")
    with runtime.load(plan=three_tiers(folder, tiny_model("gemma3", noise=0.1))) as engine:
        ids(engine)
        before = live_bytes()
        for length in (3, 30, 60):
            ids(engine, tuple(range(length)), 60)
        ids(engine)
        assert live_bytes() == before


@contextmanager
def nothing_left_open() -> Iterator[None]:
    """What is opened within must be closed by its owner, not by the garbage collector."""

    def opened() -> tuple[int, list[str]]:
        return len(list(Path("/proc/self/fd").iterdir())), lane_threads()

    gc.collect()
    gc.disable()
    before = opened()
    yield
    assert opened() == before
    gc.enable()


def test_closed_engine_gives_back_threads_and_files(tiny_model: TinyModel) -> None:
    plan = three_tiers(tiny_model("llama"), tiny_model("llama", noise=0.1))
    with nothing_left_open(), runtime.load(plan=plan) as engine:
        ids(engine)


def test_refused_engine_gives_back_threads_and_files(tiny_model: TinyModel) -> None:
    target, draft = tiny_model("llama"), tiny_model("qwen3-next")
    plan = three_tiers(target, tiny_model("qwen3"))
    chain = plan.draft.model_copy(
        update={"model": str(draft), "fingerprint": runtime.make_plan(draft).target.fingerprint}
    )
    with nothing_left_open(), pytest.raises(BadInputError, match="cannot speculate") as caught:
        runtime.load(plan=recounted(plan, draft=chain))
    assert caught.value.exit_code == 3
