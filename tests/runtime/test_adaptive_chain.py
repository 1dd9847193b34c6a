"""Chains that end where more does not pay: at which lengths, by what they know, and that nothing drawn is dropped."""

from collections.abc import Sequence

import numpy as np
import pytest
from made_up_model import Floats, MadeUpModel, made_up_row

from planner.contracts.plan import ProbabilityCurve, RoundCosts
from runtime.draft.costs import Costs
from runtime.draft.model import ChainDrafter
from runtime.proposal import Proposal, Verdict
from runtime.sampling import SamplingSettings, Uniforms

V = 8
GREEDY = SamplingSettings()
TIERS = (2, 4, 8)


def costs(pass_s: float, hidden_s: float = 0.0, node_s: float = 0.0) -> Costs:
    """A round of one second; seconds of a pass of the draft, of which some are hidden, and of each verified token."""
    return Costs(
        RoundCosts(
            num_verified=(1, 101),
            round_s=(1.0, 1.0 + 100 * node_s),
            hidden_s=(hidden_s, hidden_s),
            pass_nodes=(1,),
            draft_pass_s=(pass_s,),
        )
    )


def sure_row(text: Sequence[int], prob: float = 0.97) -> Floats:
    row = np.full(V, (1 - prob) / (V - 1))
    row[sum(text) % V] = prob
    return row


def sure_at_first(text: Sequence[int]) -> Floats:
    """Sure of what follows in a text of up to 11 tokens, and then no more."""
    return sure_row(text, 0.97 if len(text) < 12 else 0.05)


def chain(
    model: MadeUpModel,
    settings: SamplingSettings = GREEDY,
    *,
    tiers: Sequence[int] = TIERS,
    costs: Costs | None = None,
    calibration: ProbabilityCurve | None = None,
) -> ChainDrafter:
    return ChainDrafter(
        model.as_cached(),
        settings,
        Uniforms(settings.seed),
        vocab_size=V,
        chunk_tokens=16,
        draft_len=8,
        tiers=tiers,
        costs=costs,
        calibration=calibration,
    )


def lengths(drafter: ChainDrafter, share_accepted: float, num_rounds: int) -> list[int]:
    """Of what is drafted in each round, of which the target accepts a share."""
    context, found = [1, 2], []
    for _ in range(num_rounds):
        proposal = drafter.propose(context, 100)
        num_accepted = int(share_accepted * len(proposal.tokens))
        found.append(len(proposal.tokens))
        drafter.observe(proposal, Verdict(tuple(range(num_accepted)), 3))
        context += [*proposal.tokens[:num_accepted], 3]
    return found


def test_without_tiers_every_draft_is_as_long_as_it_may_be() -> None:
    drafter = chain(MadeUpModel(sure_row, V, 512), tiers=(), costs=costs(pass_s=100.0))
    assert lengths(drafter, 0.0, 10) == [8] * 10


def test_free_drafts_are_as_long_as_they_may_be() -> None:
    for free in (None, Costs.free(), costs(pass_s=0.2, hidden_s=5.0)):
        assert lengths(chain(MadeUpModel(sure_row, V, 512), costs=free), 0.5, 10) == [8] * 10


def test_a_sure_draft_that_the_target_follows_goes_to_the_end_and_an_unsure_one_stops_at_a_tier() -> None:
    cheap = costs(pass_s=0.08)
    assert lengths(chain(MadeUpModel(sure_row, V, 512), costs=cheap), 1.0, 5) == [8] * 5
    unsure = MadeUpModel(lambda text: sure_row(text, 0.2), V, 512)
    assert lengths(chain(unsure, costs=cheap), 0.0, 1) == [2]  # 0.2^2 (0.8 + 0.8^2) = 0.06 < 2 passes * 0.08 s * 1/s


def test_the_length_of_one_round_follows_that_rounds_own_probabilities() -> None:
    model = MadeUpModel(sure_at_first, V, 512)
    drafter = chain(model, costs=costs(pass_s=0.08))
    assert len(drafter.propose([1, 2], 100).tokens) == 8
    assert len(drafter.propose([1, 2, *range(6), 0], 100).tokens) == 4  # three sure ones, and one that is not


def test_calibration_stands_between_the_drafts_probabilities_and_the_decision() -> None:
    humble = ProbabilityCurve(draft_probs=(0.0, 1.0), accepted_shares=(0.0, 0.2))
    row = MadeUpModel(lambda text: sure_row(text, 0.9), V, 512)
    other = MadeUpModel(lambda text: sure_row(text, 0.9), V, 512)
    assert len(chain(row, costs=costs(pass_s=0.08)).propose([1], 100).tokens) == 8
    assert len(chain(other, costs=costs(pass_s=0.08), calibration=humble).propose([1], 100).tokens) == 2


def test_a_shorter_remainder_clips_the_tiers() -> None:
    drafter = chain(MadeUpModel(sure_row, V, 512), costs=costs(pass_s=0.02))
    for room in (0, 1, 3, 5):
        assert len(drafter.propose([1, 2], room).tokens) == room


def test_a_draft_that_is_never_followed_is_dropped_and_tried_again_every_32nd_round() -> None:
    found = lengths(chain(MadeUpModel(sure_row, V, 2048), costs=costs(pass_s=0.5)), 0.0, 200)
    drafted = [place for place, length in enumerate(found) if length]
    assert drafted[0] == 0 or found[0] == 0
    late = [place for place in drafted if place > 60]
    assert set(np.diff(late).tolist()) == {32}
    assert all(found[place] in TIERS for place in drafted)


def test_hidden_drafting_goes_on_where_exposed_drafting_would_not() -> None:
    exposed = lengths(chain(MadeUpModel(sure_row, V, 2048), costs=costs(pass_s=0.3)), 0.3, 40)
    hidden = lengths(chain(MadeUpModel(sure_row, V, 2048), costs=costs(pass_s=0.3, hidden_s=2.0)), 0.3, 40)
    assert sum(hidden) > sum(exposed)


@pytest.mark.parametrize("seed", range(5))
def test_sampled_drafts_are_the_beginning_of_what_would_be_drawn_without_tiers(seed: int) -> None:
    settings = SamplingSettings(temperature=1.0, seed=seed)

    def row_after(text: Sequence[int]) -> Floats:
        return made_up_row(text, V, seed, evenness=0.3)

    whole = chain(MadeUpModel(row_after, V), settings, tiers=()).propose([1, 2], 100)
    part = chain(MadeUpModel(row_after, V), settings, costs=costs(pass_s=0.1)).propose([1, 2], 100)
    assert len(part.tokens) in TIERS
    assert part.tokens == whole.tokens[: len(part.tokens)]
    assert part.rows_RV is not None
    assert whole.rows_RV is not None
    assert part.rows_RV.equal(whole.rows_RV[: len(part.tokens)])


def stops_after(settings: SamplingSettings, largest: Sequence[float], tokens_seed: int) -> int:
    """Length of a draft whose rows have these largest probabilities, on tokens that the seed decides."""

    def row_after(text: Sequence[int]) -> Floats:
        return np.roll(sure_row([0], largest[len(text) - 2]), tokens_seed + len(text))

    return len(chain(MadeUpModel(row_after, V), settings, costs=costs(pass_s=0.1)).propose([1, 2], 100).tokens)


def test_where_a_sampled_draft_stops_does_not_depend_on_the_value_of_what_was_drawn() -> None:
    for largest in ([0.9] * 8, [0.9, 0.4] + [0.9] * 6, [0.3] * 8):
        found = {
            stops_after(SamplingSettings(temperature=1.0, seed=seed), largest, tokens_seed)
            for seed in range(6)
            for tokens_seed in range(3)
        }
        assert len(found) == 1


def test_the_rows_of_every_round_lie_in_the_same_memory() -> None:
    drafter = chain(MadeUpModel(sure_row, V, 512), SamplingSettings(temperature=1.0, seed=1), tiers=())
    proposals: list[Proposal] = [drafter.propose([1, 2, *[3] * num], 100) for num in range(3)]
    assert len({proposal.rows_RV.data_ptr() for proposal in proposals if proposal.rows_RV is not None}) == 1
