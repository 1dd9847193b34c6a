"""Settings are checked, rows equal those of transformers, draws follow the row, seeds repeat.

Shapes: T rows, V vocabulary.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from planner.contracts.errors import UsageError
from runtime.sampling import SamplingSettings, Uniforms, draw_token, probability_rows

LARGEST_UNIFORM = float(np.nextafter(1.0, 0.0))
ALL_FILTERS = SamplingSettings(temperature=0.7, top_k=20, top_p=0.8, min_p=0.05)
EACH_FILTER = [
    SamplingSettings(temperature=1.0),
    SamplingSettings(temperature=0.3),
    SamplingSettings(temperature=1.0, top_k=1),
    SamplingSettings(temperature=1.5, top_k=50),
    SamplingSettings(temperature=1.5, top_p=0.9),
    SamplingSettings(temperature=1.0, top_p=0.01),
    SamplingSettings(temperature=1.5, min_p=0.1),
    SamplingSettings(temperature=2.0, top_k=30, top_p=0.5),
    ALL_FILTERS,
]


def random_logits(num_rows: int, vocabulary: int, seed: int = 0) -> Tensor:
    return torch.randn(num_rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3


def transformers_rows(logits_TV: Tensor, chosen: SamplingSettings) -> Tensor:
    """What transformers' own warpers make of the logits, in the order in which `generate` applies them."""
    no_tokens = torch.empty(0, dtype=torch.long)
    scores_TV: Tensor = TemperatureLogitsWarper(chosen.temperature)(no_tokens, logits_TV)
    if chosen.top_k is not None:
        scores_TV = TopKLogitsWarper(chosen.top_k)(no_tokens, scores_TV)
    if chosen.top_p is not None:
        scores_TV = TopPLogitsWarper(chosen.top_p)(no_tokens, scores_TV)
    if chosen.min_p is not None:
        scores_TV = MinPLogitsWarper(chosen.min_p)(no_tokens, scores_TV)
    return scores_TV.softmax(dim=-1)


def assert_same_rows(ours_TV: Tensor, theirs_TV: Tensor) -> None:
    assert torch.equal(ours_TV > 0, theirs_TV > 0)
    torch.testing.assert_close(ours_TV, theirs_TV, rtol=1e-5, atol=0)


# settings


@pytest.mark.parametrize(
    ("field", "value", "bound"),
    [
        ("temperature", -0.1, "finite and at least 0"),
        ("temperature", math.inf, "finite and at least 0"),
        ("temperature", math.nan, "finite and at least 0"),
        ("top_k", 0, "at least 1"),
        ("top_k", -5, "at least 1"),
        ("top_p", 0.0, "above 0 and at most 1"),
        ("top_p", 1.5, "above 0 and at most 1"),
        ("top_p", math.nan, "above 0 and at most 1"),
        ("min_p", -0.1, "at least 0 and below 1"),
        ("min_p", 1.0, "at least 0 and below 1"),
        ("min_p", math.nan, "at least 0 and below 1"),
        ("seed", -1, r"at least 0 and below 2\*\*64"),
        ("seed", 2**64, r"at least 0 and below 2\*\*64"),
    ],
)
def test_a_setting_out_of_bounds_is_refused_by_field_value_and_bound(field: str, value: float, bound: str) -> None:
    values: dict[str, float] = {"temperature": 1.0, field: value}
    with pytest.raises(UsageError, match=rf"{field} = {value} .*\n.*{field} must be {bound}"):
        SamplingSettings(**values)  # type: ignore[arg-type]


def test_settings_at_their_bounds_are_accepted() -> None:
    SamplingSettings(temperature=0.0, top_k=1, top_p=1.0, min_p=0.0, seed=2**64 - 1)


def test_only_temperature_zero_is_greedy() -> None:
    assert SamplingSettings().is_greedy
    assert not SamplingSettings(temperature=1e-6).is_greedy


# rows


@pytest.mark.parametrize("chosen", EACH_FILTER, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_rows_equal_those_of_the_transformers_warpers(chosen: SamplingSettings, dtype: torch.dtype) -> None:
    logits_TV = random_logits(5, 1000).to(dtype)
    assert_same_rows(probability_rows(logits_TV, chosen), transformers_rows(logits_TV, chosen))


@pytest.mark.parametrize("chosen", EACH_FILTER, ids=str)
def test_rows_equal_those_of_the_transformers_warpers_under_a_mask(chosen: SamplingSettings) -> None:
    logits_TV = random_logits(3, 40)
    logits_TV[0, 8:] = -math.inf
    logits_TV[1, ::2] = -math.inf
    assert_same_rows(probability_rows(logits_TV, chosen), transformers_rows(logits_TV, chosen))


@pytest.mark.parametrize("chosen", EACH_FILTER, ids=str)
def test_rows_of_tied_bf16_logits_hold_the_same_probabilities_as_those_of_transformers(
    chosen: SamplingSettings,
) -> None:
    # Which of equal tokens top-p drops is the sort's own choice; how many, and so the sorted row, is not.
    logits_TV = random_logits(4, 300).round().bfloat16()
    ours_TV, theirs_TV = probability_rows(logits_TV, chosen), transformers_rows(logits_TV.float(), chosen)
    assert_same_rows(ours_TV.sort(dim=-1).values, theirs_TV.sort(dim=-1).values)


def test_rows_equal_those_of_the_transformers_warpers_at_a_real_vocabulary() -> None:
    logits_TV = random_logits(2, 151_936)
    for chosen in (ALL_FILTERS, SamplingSettings(temperature=0.6, top_p=0.95)):
        assert_same_rows(probability_rows(logits_TV, chosen), transformers_rows(logits_TV, chosen))


def test_rows_equal_those_that_generate_samples_from() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).eval()
    model.lm_head.weight.data.mul_(100)  # an untrained model is too sure of nothing for the filters to differ
    chosen = SamplingSettings(temperature=0.7, top_k=20, top_p=0.8, min_p=0.1)
    output = model.generate(
        torch.tensor([[1, 2, 3]]),
        attention_mask=torch.ones(1, 3, dtype=torch.long),
        do_sample=True,
        temperature=chosen.temperature,
        top_k=chosen.top_k,
        top_p=chosen.top_p,
        min_p=chosen.min_p,
        max_new_tokens=8,
        eos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
        output_scores=True,
    )
    rows_TV = probability_rows(torch.cat(output.logits), chosen)
    assert_same_rows(rows_TV, torch.cat(output.scores).softmax(dim=-1))
    assert 1 < (rows_TV > 0).sum() / len(rows_TV) < 20  # the filters did cut, and left something


@pytest.mark.parametrize("chosen", [*EACH_FILTER, SamplingSettings()], ids=str)
def test_a_row_is_the_same_alone_and_among_others(chosen: SamplingSettings) -> None:
    logits_TV = (random_logits(17, 500) * torch.linspace(0.05, 2, 17).unsqueeze(-1)).bfloat16()
    together_TV = probability_rows(logits_TV, chosen)
    for row_idx in range(len(logits_TV)):
        assert torch.equal(
            together_TV[row_idx : row_idx + 1], probability_rows(logits_TV[row_idx : row_idx + 1], chosen)
        )


def test_a_row_is_the_same_alone_and_among_others_where_rounding_hides_the_end_of_top_p() -> None:
    # Float32 sums of most of these rows end just below 1; the tokens at -60 are candidates in no row.
    logits_TV = random_logits(17, 500)
    logits_TV[1:, ::2] -= 60
    chosen = SamplingSettings(temperature=1.0, top_p=1 - 1e-9)
    together_TV = probability_rows(logits_TV, chosen)
    alone_TV = torch.cat([probability_rows(row_V[None], chosen) for row_V in logits_TV])
    assert torch.equal(together_TV, alone_TV)


@pytest.mark.parametrize(
    ("given_dtype", "row_dtype"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_rows_are_float32_unless_the_logits_are_float64(given_dtype: torch.dtype, row_dtype: torch.dtype) -> None:
    for chosen in (ALL_FILTERS, SamplingSettings()):
        assert probability_rows(random_logits(2, 64).to(given_dtype), chosen).dtype == row_dtype


def test_logits_are_left_as_they_were() -> None:
    logits_TV = random_logits(2, 64)
    before_TV = logits_TV.clone()
    probability_rows(logits_TV, ALL_FILTERS)
    probability_rows(logits_TV, SamplingSettings())
    assert torch.equal(logits_TV, before_TV)


def test_a_greedy_row_has_all_mass_on_the_first_largest_logit() -> None:
    rows_TV = probability_rows(torch.tensor([[1.0, 3.0, 3.0], [-math.inf, -5.0, -7.0]]), SamplingSettings())
    assert rows_TV.tolist() == [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]


@pytest.mark.parametrize("temperature", [1e-6, 1e-40, 5e-324])
def test_a_temperature_near_zero_gives_the_greedy_row(temperature: float) -> None:
    rows_TV = probability_rows(random_logits(3, 50), SamplingSettings(temperature=temperature))
    assert torch.equal(rows_TV, probability_rows(random_logits(3, 50), SamplingSettings()))


def test_the_largest_finite_logits_give_finite_rows() -> None:
    largest = torch.finfo(torch.float32).max
    rows_TV = probability_rows(torch.tensor([[largest, -largest, 0.0]]), SamplingSettings(temperature=0.5))
    assert rows_TV.tolist() == [[1.0, 0.0, 0.0]]


def test_a_top_k_beyond_the_vocabulary_keeps_every_token() -> None:
    logits_TV = random_logits(2, 10)
    rows_TV = probability_rows(logits_TV, SamplingSettings(temperature=1.0, top_k=1000))
    assert torch.equal(rows_TV, logits_TV.softmax(dim=-1))


def test_filters_at_their_bounds_keep_every_token() -> None:
    rows_TV = probability_rows(random_logits(20, 1000), SamplingSettings(temperature=1.0, top_p=1.0, min_p=0.0))
    assert torch.equal(rows_TV, probability_rows(random_logits(20, 1000), SamplingSettings(temperature=1.0)))


def test_top_p_keeps_no_more_once_it_is_reached_exactly() -> None:
    rows_TV = probability_rows(torch.zeros(1, 4), SamplingSettings(temperature=1.0, top_p=0.5))
    assert rows_TV.tolist() == [[0.5, 0.5, 0.0, 0.0]]


@pytest.mark.parametrize("top_p", [1e-9, 1e-300])
def test_the_smallest_top_p_keeps_the_most_probable_token(top_p: float) -> None:
    rows_TV = probability_rows(torch.tensor([[1.0, 2.0, 0.0]]), SamplingSettings(temperature=1.0, top_p=top_p))
    assert rows_TV.tolist() == [[0.0, 1.0, 0.0]]


def test_of_equal_tokens_top_p_keeps_the_lowest_ids() -> None:
    # Five tokens of 1/5: three are needed to hold 0.5.
    rows_TV = probability_rows(torch.zeros(1, 5), SamplingSettings(temperature=1.0, top_p=0.5))
    torch.testing.assert_close(rows_TV, torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0]]) / 3)


# draws


@pytest.mark.parametrize(
    ("uniform", "token"),
    [(0.0, 1), (0.25 - 2**-54, 1), (0.25, 3), (0.75 - 2**-53, 3), (0.75, 4), (LARGEST_UNIFORM, 4)],
)
@pytest.mark.parametrize("scale", [1.0, 0.25, 16.0])
def test_each_token_is_drawn_from_its_interval_of_the_cumulative_sum(uniform: float, token: int, scale: float) -> None:
    # Intervals: token 1 [0, 1/4), token 3 [1/4, 3/4), token 4 [3/4, 1); a power of two scales them exactly.
    probs_V = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0]) * scale
    assert draw_token(probs_V, uniform) == token


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    weights=st.lists(st.one_of(st.just(0.0), st.floats(2.0**-140, 1.0, width=32)), min_size=1, max_size=40).filter(any),
    uniform=st.floats(0.0, LARGEST_UNIFORM),
)
def test_a_token_of_probability_zero_is_never_drawn(weights: list[float], uniform: float) -> None:
    probs_V = torch.tensor(weights, dtype=torch.float32)
    for extreme in (uniform, 0.0, LARGEST_UNIFORM):
        assert probs_V[draw_token(probs_V, extreme)] > 0


def test_the_sum_is_taken_in_float64() -> None:
    # After the first token 2**-25 is lost from a float32 sum; 2**20 such tokens hold 1/33 of the mass.
    probs_V = torch.cat([torch.ones(1), torch.full((2**20,), 2.0**-25)])
    assert draw_token(probs_V, 32 / 33 - 1e-9) == 0
    assert draw_token(probs_V, LARGEST_UNIFORM) == 2**20


@pytest.mark.parametrize("probs", [[0.0, 0.0], []])
def test_a_row_without_mass_cannot_be_drawn_from(probs: list[float]) -> None:
    with pytest.raises(AssertionError, match="no token has a positive probability"):
        draw_token(torch.tensor(probs), 0.5)


@pytest.mark.parametrize("uniform", [1.0, -1e-9, math.nan])
def test_a_uniform_outside_its_interval_is_a_bug(uniform: float) -> None:
    with pytest.raises(AssertionError, match=r"outside \[0, 1\)"):
        draw_token(torch.ones(2), uniform)


# uniforms


def test_the_same_seed_gives_the_same_uniforms() -> None:
    first, second, other = Uniforms(7), Uniforms(7), Uniforms(8)
    drawn = [first.next() for _ in range(100)]
    assert drawn == [second.next() for _ in range(100)]
    assert drawn != [other.next() for _ in range(100)]


def test_without_a_seed_each_run_differs_and_its_seed_repeats_it() -> None:
    first, second = Uniforms(None), Uniforms(None)
    drawn = [first.next() for _ in range(10)]
    assert drawn != [second.next() for _ in range(10)]
    again = Uniforms(SamplingSettings(seed=first.seed).seed)
    assert drawn == [again.next() for _ in range(10)]


def test_uniforms_use_all_bits_of_a_float64_and_stay_in_their_interval() -> None:
    uniforms = Uniforms(0)
    drawn = [uniforms.next() for _ in range(10_000)]
    assert all(0 <= uniform < 1 for uniform in drawn)
    assert any(uniform != float(np.float32(uniform)) for uniform in drawn)
    # The mean of 10,000 uniforms has a standard deviation of sqrt(1/12)/100 = 0.0029.
    assert abs(sum(drawn) / len(drawn) - 0.5) < 5 * 0.0029


def test_uniforms_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    Uniforms(3).next()
    Uniforms(None).next()
    assert torch.equal(before, torch.get_rng_state())
