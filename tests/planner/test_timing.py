"""Reading times off tables: exact at measured points, never falling between, refused where nothing was measured."""

from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import DRAFT, MB, TOKENS, layer_s, profile, spread

from planner.contracts.errors import BadInputError
from planner.contracts.plan import CudaLink, DiskLink, EmulatedLink, LinkChoice
from planner.contracts.profile import ComputeMeasurement, DraftMeasurement, LinkMeasurement, Profile
from planner.drafting import NO_DRAFTING, chain
from planner.timing import ComputeTable, Curve, LoadedTable, Timing, spread_frac

QUICK = settings(deadline=None)
DISK = Timing(profile(), DiskLink(mode="cached"))


def test_measured_points_are_returned_as_they_are() -> None:
    for num_tokens in TOKENS:
        assert DISK.layer_s(3, num_tokens, 0) == layer_s(num_tokens)


def test_between_points_lies_the_line() -> None:
    assert Curve("x", {4: 1.0, 8: 3.0}).at(5) == pytest.approx(1.5)


def test_beyond_the_last_point_its_utilisation_is_held_and_past_four_times_it_is_refused() -> None:
    curve = Curve("x", {4: 1.0, 8: 3.0})
    assert curve.at(24) == pytest.approx(9.0)
    with pytest.raises(BadInputError, match="does not reach 33 for x"):
        curve.at(33)


def test_below_the_first_point_a_pass_is_no_shorter() -> None:
    assert Curve("x", {4: 1.0, 8: 3.0}).at(1) == 1.0


def test_noise_is_flattened_but_another_kernel_is_kept() -> None:
    noisy = Curve("x", {1: 1.00, 2: 1.04, 3: 1.02, 4: 1.1})
    assert noisy.at(2) == noisy.at(3) == pytest.approx(1.03)
    switched = Curve("x", {1: 1.0, 8: 2.0, 9: 1.2, 16: 1.3})
    assert switched.at(8) == 2.0
    assert switched.at(9) == 1.2


@QUICK
@given(st.dictionaries(st.integers(1, 500), st.floats(1e-6, 1.0), min_size=1), st.integers(1, 500), st.integers(1, 500))
def test_more_tokens_never_take_less_time(points: dict[int, float], first: int, second: int) -> None:
    rising = dict(zip(sorted(points), sorted(points.values()), strict=True))
    curve = Curve("x", rising)
    low, high = sorted((min(first, 4 * max(rising)), min(second, 4 * max(rising))))
    assert curve.at(low) <= curve.at(high) * (1 + 1e-12)


def test_context_adds_what_was_measured_and_grows_with_the_tokens() -> None:
    table = ComputeTable("layer 0", {(1, 0): 1.0, (8, 0): 2.0, (1, 1000): 1.5, (8, 1000): 3.0})
    assert table.at(1, 1000) == 1.5
    assert table.at(8, 1000) == 3.0
    assert table.at(1, 500) == pytest.approx(1.25)
    # Half way from 1 to 8 tokens both the pass and its growth are half way.
    assert table.at(4.5, 1000) == pytest.approx(1.5 + 0.75)
    assert table.at(16, 1000) == pytest.approx(4.0 + 2.0)
    assert table.at(1, 4000) == pytest.approx(1.0 + 2.0)
    with pytest.raises(BadInputError, match="at a context of 5000 tokens"):
        table.at(1, 5000)


def test_a_context_that_was_never_measured_is_refused_when_it_matters() -> None:
    table = ComputeTable("layer 0", {(1, 0): 1.0})
    assert table.at(1, 512) == 1.0
    with pytest.raises(BadInputError, match="planner profile --ctx-size 5000"):
        table.at(1, 5000)


def test_copies_slow_compute_down_in_proportion_to_their_rate() -> None:
    table = LoadedTable("layer 0", {0.0: {(1, 0): 1.0, (8, 0): 2.0}, 1e9: {(1, 0): 1.2, (8, 0): 2.0}})
    assert table.at(1, 0, 0.0) == 1.0
    assert table.at(1, 0, 1e9) == pytest.approx(1.2)
    assert table.at(1, 0, 0.5e9) == pytest.approx(1.1)
    assert table.at(8, 0, 1e9) == 2.0
    assert table.factor(4.5, 1e9) == pytest.approx(1.1)


def test_a_unit_whose_weights_were_just_copied_may_be_faster_than_one_that_lay_cold() -> None:
    table = LoadedTable("layer 0", {0.0: {(1, 0): 1.0, (8, 0): 2.0}, 1e9: {(1, 0): 0.7, (8, 0): 2.2}})
    assert table.at(1, 0, 1e9) == 1.0
    assert table.warm_frac(1) == pytest.approx(0.7)
    assert table.warm_frac(8) == 1.0
    assert table.at(8, 0, 1e9) == pytest.approx(2.2)


def test_an_emulated_link_is_as_stated_and_a_disk_as_measured() -> None:
    stated = Timing(profile(), EmulatedLink(bytes_per_s=2e9, latency_s=1e-3))
    assert stated.copy_s(10 * MB) == pytest.approx(6e-3)
    assert DISK.copy_s(10 * MB) == 10e-3
    assert DISK.copy_s(5 * MB) == pytest.approx(1e-3 + 4 / 9 * 9e-3)
    assert DISK.copy_s(20 * MB) == pytest.approx(20e-3)
    assert DISK.copy_s(0) == 0.0


def test_a_busy_compute_lane_slows_copies_down() -> None:
    loaded = LinkMeasurement(link="disk:cached", num_bytes=10 * MB, loaded=True, duration_s=spread(14e-3))
    timing = Timing(profile(links=(*profile().links, loaded)), DiskLink(mode="cached"))
    assert timing.copy_s(10 * MB, 0.0) == 10e-3
    assert timing.copy_s(10 * MB, 1.0) == pytest.approx(14e-3)
    assert timing.copy_s(10 * MB, 0.5) == pytest.approx(12e-3)


def test_reads_into_staging_come_from_the_disk_itself_where_it_was_measured() -> None:
    direct = LinkMeasurement(link="disk:direct", num_bytes=10 * MB, loaded=False, duration_s=spread(90e-3))
    assert Timing(profile(), CudaLink()).read_s(10 * MB) == 10e-3
    assert Timing(profile(links=(*profile().links, direct)), CudaLink()).read_s(10 * MB) == 90e-3


def test_a_head_chunk_takes_its_share_of_the_measured_rows() -> None:
    head = ComputeMeasurement(unit="head_chunk", num_rows=64, num_tokens=1, context_tokens=0, duration_s=spread(8e-3))
    small = ComputeMeasurement(unit="head_chunk", num_rows=16, num_tokens=1, context_tokens=0, duration_s=spread(3e-3))
    without = [entry for entry in profile().compute if entry.unit != "head_chunk"]
    timing = Timing(profile(compute=(*without, head, small)), DiskLink())
    assert timing.head_s(64, 1) == 8e-3
    assert timing.head_s(40, 1) == pytest.approx(5.5e-3)
    assert timing.head_s(8, 1) == pytest.approx(1.5e-3)
    with pytest.raises(BadInputError, match="the head on the host"):
        timing.head_s(64, 1, 0.0, "host")


def test_a_chain_feeds_what_was_accepted_and_then_token_by_token() -> None:
    assert DISK.draft_s(DRAFT.fingerprint, NO_DRAFTING, 0, 0.0, "device", 1.5, 0) == 0.0
    assert DISK.draft_s(DRAFT.fingerprint, chain(4), 0, 0.0, "device", 1.5, 4) == pytest.approx(4 * 3e-3)
    with pytest.raises(BadInputError, match="passes of the draft unknown"):
        DISK.draft_pass_s("unknown", 1, 0)


def test_passes_of_a_chain_are_told_apart_by_their_place_as_far_as_they_were_measured() -> None:
    passes = [
        DraftMeasurement(
            fingerprint=DRAFT.fingerprint,
            position=position,
            num_tokens=1,
            context_tokens=0,
            duration_s=spread(duration_s),
        )
        for position, duration_s in ((0, 2e-3), (1, 9e-3), (2, 5e-3), (3, 1e-3))
    ]
    timing = Timing(profile(draft_passes=tuple(passes)), DiskLink())

    def draft_s(num_passes: float) -> float:
        return timing.draft_s(DRAFT.fingerprint, chain(8), 0, 0.0, "device", 1.0, num_passes)

    assert [draft_s(count) for count in (0.5, 1, 2, 2.5, 3, 8)] == pytest.approx(
        [4.5e-3, 9e-3, 14e-3, 14.5e-3, 15e-3, 20e-3]
    )
    assert timing.draft_pass_s(DRAFT.fingerprint, 1, 0) == 2e-3, "all after the first"


def test_a_profile_that_tells_the_first_pass_apart_alone_is_read_as_it_was_meant() -> None:
    row = {
        "fingerprint": "f",
        "num_tokens": 1,
        "context_tokens": 0,
        "duration_s": {"p25": 1.0, "median": 1.0, "p75": 1.0, "num_samples": 3},
    }
    read = [DraftMeasurement.model_validate({**row, "is_first": is_first}) for is_first in (True, False)]
    assert [entry.position for entry in read] == [1, 0]


def test_the_edge_is_that_of_the_nearest_load() -> None:
    edges = [
        ComputeMeasurement(
            unit="edge", num_tokens=1, context_tokens=0, load_bytes_per_s=load, duration_s=spread(duration_s)
        )
        for load, duration_s in ((1e8, 1e-4), (2e9, 2e-4))
    ]
    timing = Timing(profile(compute=(*profile().compute, *edges)), DiskLink())
    assert timing.edge_s(0.5e8) == 1e-4
    assert timing.edge_s(3e9) == 2e-4
    assert DISK.edge_s(1e9) == 0.0


def beside_pass(unit: Literal["round", "tree_round"], times_s: dict[int, float]) -> list[ComputeMeasurement]:
    """What rounds of so many tokens take beside their pass."""
    return [
        ComputeMeasurement(unit=unit, num_tokens=num_tokens, context_tokens=0, duration_s=spread(time_s))
        for num_tokens, time_s in times_s.items()
    ]


def test_rounds_of_trees_are_told_from_those_of_chains_where_they_were_measured() -> None:
    bare = tuple(entry for entry in profile().compute if entry.unit != "round")
    chains, trees = beside_pass("round", {1: 1e-4, 9: 2e-4}), beside_pass("tree_round", {9: 5e-4, 33: 9e-4})
    timing = Timing(profile(compute=(*bare, *chains, *trees)), DiskLink())
    assert [timing.round_s(count, is_tree=True) for count in (1, 9, 33)] == [5e-4, 5e-4, 9e-4]
    assert [timing.round_s(count) for count in (1, 9)] == [1e-4, 2e-4]
    assert timing.round_s(33) == 9e-4, "a chain longer than those measured takes what a tree does"
    assert timing.round_s(21) == pytest.approx(5.5e-4)
    older = Timing(profile(compute=(*bare, *chains)), DiskLink())
    assert older.round_s(9, is_tree=True) == 2e-4, "a profile that does not tell them apart"


def test_a_link_is_fitted_through_its_outliers() -> None:
    points = {size: 1e-4 + size / 2e9 for size in (MB, 4 * MB, 16 * MB, 64 * MB, 256 * MB)}
    points[16 * MB] *= 3
    links = [
        LinkMeasurement(link="cuda", num_bytes=size, loaded=False, duration_s=spread(duration_s))
        for size, duration_s in points.items()
    ]
    fit = Timing(profile(links=tuple(links)), CudaLink()).link_fit("cuda", loaded=False)
    assert fit is not None
    assert fit.bytes_per_s == pytest.approx(2e9, rel=0.02)
    assert fit.latency_s == pytest.approx(1e-4, rel=0.5)


def test_the_spread_of_measurements_is_their_quartiles_in_deviations() -> None:
    wide = LinkMeasurement(
        link="cuda",
        num_bytes=1,
        loaded=False,
        duration_s=spread(1.0).model_copy(update={"p25": 0.9, "p75": 1.1}),
    )
    assert spread_frac([wide]) == pytest.approx(0.2 / 1.349)
    assert spread_frac([]) == 0.0


def test_what_only_happens_beside_copies_is_as_measured_at_every_size() -> None:
    # Each width was measured at a load of its own; none of them is the table of an idle link.
    table = LoadedTable("embedding 0", {2e9: {(1, 0): 1.0}, 1e9: {(8, 0): 2.0}, 5e8: {(64, 0): 9.0}})
    assert [table.at(size, 0, 3e9) for size in (1, 8, 64)] == [1.0, 2.0, 9.0]


def test_what_copies_cost_is_read_beside_the_plans_own_link_first() -> None:
    alone = ComputeMeasurement(unit="layer", num_tokens=1, context_tokens=0, duration_s=spread(1.0))

    def beside(link: str, load: float, duration_s: float) -> ComputeMeasurement:
        changes = {"load_bytes_per_s": load, "load_link": link, "duration_s": spread(duration_s)}
        return alone.model_copy(update=changes)

    # Per GB/s: 0.1 more beside the disk, 0.4 and 0.6 beside emulated links of 2 and 4 GB/s.
    rows = (
        alone,
        beside("disk:cached", 1e9, 1.1),
        beside("emulated:2GB/s", 2e9, 1.8),
        beside("emulated:4GB/s", 4e9, 3.4),
    )

    def slowed(link: LinkChoice) -> float:
        return Timing(profile(compute=rows), link).layer_s(0, 1, 0, 1e9)

    assert slowed(EmulatedLink(bytes_per_s=4e9)) == pytest.approx(1.6)
    assert slowed(DiskLink(mode="cached")) == pytest.approx(1.1)
    # Another of its kind: least squares through both, (2 x 0.8 + 4 x 2.4) / (4 + 16) = 0.56
    assert slowed(EmulatedLink(bytes_per_s=3e9)) == pytest.approx(1.56)
    # Of no kind that was measured: through all three, (0.1 + 1.6 + 9.6) / 21
    assert slowed(CudaLink()) == pytest.approx(1 + 11.3 / 21)


def test_a_missing_measurement_is_named_with_the_group_that_it_belongs_to() -> None:
    bare = Timing(profile(compute=()), DiskLink(mode="cached"))
    with pytest.raises(BadInputError, match="what a round takes beside its pass and its draft") as refused:
        bare.round_s(1)
    assert "its rounds not left out by --only" in refused.value.remedy
    with pytest.raises(BadInputError, match="the compute time of layer 0 on the device") as refused:
        bare.layer_s(3, 1, 0)
    assert "its compute not left out by --only" in refused.value.remedy


def test_no_measurement_takes_less_than_no_time(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    text = profile().to_json()
    path.write_text(text.replace('"median": 0.002,', '"median": -0.002,', 1))
    assert path.read_text() != text
    with pytest.raises(BadInputError, match="median: Input should be greater than or equal to 0") as refused:
        Profile.read(path)
    assert "is no valid Profile file" in refused.value.what
