"""What a wait for weights adds to the unit after it, told apart from what copies cost by their rate."""

import statistics
from dataclasses import replace

import pytest
from made_up import MB, TOKENS, layer_s, profile, request, spread

from planner.contracts.plan import EmulatedLink
from planner.contracts.profile import ComputeMeasurement, Profile
from planner.search import rank
from planner.timing import LoadedTable, Timing

SLOW = EmulatedLink(bytes_per_s=1e8)  # a layer of 10 MB every 100 ms
EXTRA_S = 3e-3


def waited() -> Profile:
    """Beside the slow link each layer takes 3 ms more than alone."""
    rows = [
        ComputeMeasurement(
            unit="layer",
            num_tokens=count,
            context_tokens=0,
            load_bytes_per_s=1e8,
            load_link="emulated:0.1GB/s",
            duration_s=spread(layer_s(count) + EXTRA_S),
        )
        for count in TOKENS[:-1]  # 512 tokens compute for longer than they wait
    ]
    return profile(compute=(*profile().compute, *rows))


def streamed_s(bytes_per_s: float) -> list[float]:
    """Seconds that the streamed layers compute in a round of one token over a link."""
    asked = replace(request(60 * MB, link=EmulatedLink(bytes_per_s=bytes_per_s)), never_speculate=True)
    terms = rank(waited(), asked).best.terms
    return [float(seconds) for seconds in terms.compute_s_U[terms.is_streamed_U]]


def test_over_the_link_it_was_measured_beside_a_unit_takes_what_it_took() -> None:
    # A round waits 100 - 2 ms for each layer, and somewhat less for the work of the residents: 95 ms and more.
    assert streamed_s(1e8) == pytest.approx([layer_s(1) + EXTRA_S] * len(streamed_s(1e8)), rel=0.05)


def test_over_that_link_it_does_so_too_where_others_leave_weights_in_the_cache() -> None:
    warm = [
        row.model_copy(update={"load_bytes_per_s": 5e9, "load_link": "emulated:5GB/s", "duration_s": spread(1e-3)})
        for row in profile().compute
        if row.unit == "layer" and row.num_tokens == 1
    ]
    made = waited()
    timing = Timing(made.model_copy(update={"compute": (*made.compute, *warm)}), EmulatedLink(bytes_per_s=2e8))
    assert timing.wake_s("layer", 0, 0, 1.0) == pytest.approx(EXTRA_S)
    # One token takes half as long when warm, and so do more of them, none being measured.
    saved_s = statistics.median(layer_s(count) / 2 for count in TOKENS[:-1])
    assert timing.wake_s("layer", 0, 0, 1.0, is_warm=True) == pytest.approx(EXTRA_S + saved_s)


def test_over_faster_links_waits_are_shorter_and_so_is_what_they_cost() -> None:
    # Over 1 GB/s a layer takes 10 ms to come and 2 ms to compute: a wait of 8 ms at most, of the 95 ms measured.
    assert max(streamed_s(1e9)) <= layer_s(1) + EXTRA_S * 8 / 95


def test_over_a_link_that_nothing_waits_for_a_unit_takes_no_longer_than_alone() -> None:
    assert streamed_s(1e11) == pytest.approx([layer_s(1)] * len(streamed_s(1e11)))


def test_parts_of_a_layer_wait_as_the_layer_does() -> None:
    timing = Timing(waited(), SLOW)
    for kind in ("layer", "attention", "mlp"):
        assert timing.wake_s(kind, 0, 0, 1.0) == pytest.approx(EXTRA_S)
    assert timing.wake_s("head_chunk", 0, 64, 1.0) == 0.0  # not measured after a wait


def test_times_of_a_lane_that_hardly_waits_say_what_copies_cost() -> None:
    # 110 ms of compute every 100 ms: the copies are what makes it slower, whatever the link.
    row = waited().compute[-1].model_copy(update={"num_tokens": 1, "duration_s": spread(0.110)})
    timing = Timing(profile(compute=(*profile().compute, row)), SLOW)
    assert timing.layer_s(0, 1, 0, 1e8) == pytest.approx(0.110)
    assert timing.wake_s("layer", 0, 0, 1.0) == 0.0


def test_faster_copies_than_measured_cost_no_more_than_the_fastest_of_those() -> None:
    table = LoadedTable("layer 0", {0.0: {(1, 0): 1.0}, 1e8: {(1, 0): 1.5}, 2e8: {(1, 0): 2.0}})
    assert table.at(1, 0, 1e8) == pytest.approx(1.5)
    assert table.at(1, 0, 2e8) == table.at(1, 0, 1e10) == pytest.approx(2.0)
