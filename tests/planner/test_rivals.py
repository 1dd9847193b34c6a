"""Other engines beside a device: the CPU computes what does not fit there, and what has no price is named."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from made_up import DRAFT, MB, layer_s, profile, request, spread

from planner.contracts.plan import ChainDraft, CudaLink, Workload
from planner.contracts.profile import ComputeMeasurement, DraftMeasurement, LinkMeasurement, Profile
from planner.contracts.recommendation import Recommendation
from planner.recommend import recommend
from planner.render import sections
from planner.search import Request, rank, request_for

FAR_TOKENS = 1024
HOST_SLOWER = 5


def on_device() -> Profile:
    """The made-up machine with a device behind a link of 1 GB/s, measured after 0 and 1024 tokens."""
    made = profile()
    far = [entry.model_copy(update={"context_tokens": FAR_TOKENS}) for entry in made.compute]
    passes = [entry.model_copy(update={"context_tokens": FAR_TOKENS}) for entry in made.draft_passes]
    links = [LinkMeasurement(link="cuda", num_bytes=10 * MB, loaded=False, duration_s=spread(10e-3))]
    return profile(
        links=(*made.links, *links),
        compute=(*made.compute, *far),
        draft_passes=(*made.draft_passes, *passes),
    )


def host_compute(contexts: Sequence[int]) -> list[ComputeMeasurement]:
    """Layers and head on the CPU, each five times as slow as on the device."""
    found = []
    for context_tokens in contexts:
        for count in (1, 4, 16, 64):
            row = ComputeMeasurement(
                unit="layer",
                processor="host",
                num_tokens=count,
                context_tokens=context_tokens,
                duration_s=spread(HOST_SLOWER * layer_s(count)),
            )
            head = {"unit": "head_chunk", "num_rows": 64, "duration_s": spread(0.0)}
            found += [row, row.model_copy(update=head)]
    return found


def with_host(contexts: Sequence[int] = (0, FAR_TOKENS)) -> Profile:
    made = on_device()
    return made.model_copy(update={"compute": (*made.compute, *host_compute(contexts))})


def asked() -> Request:
    """The workload that the commands take where nothing is said: 256 tokens after 512."""
    made = request(80 * MB, link=CudaLink(), workload=Workload(prompt_tokens=512, new_tokens=256))
    return replace(made, wishes=replace(made.wishes, context_tokens=768))


def names_of(found: Recommendation) -> set[tuple[str, str | None]]:
    return {(rival.name, rival.draft) for rival in found.rivals}


def shown(found: Recommendation, *, explain: bool = False) -> list[str]:
    return [line for section in sections(found, explain=explain) for line in section.lines]


def test_the_cpu_computing_layers_is_a_rival_with_a_draft_and_without_at_the_usual_workload() -> None:
    found = recommend(with_host(), asked())
    assert names_of(found) == {(name, draft) for name in ("no prefetch", "CPU layers") for draft in (None, DRAFT.name)}
    assert found.unpriced_rivals == ()
    (plain,) = [rival for rival in found.rivals if (rival.name, rival.draft) == ("CPU layers", None)]
    # 80 MB hold all but a few MB of 8 layers less one: 9 layers at 10 ms on the CPU, 7 at 2 ms, and 1 ms of the host.
    assert plain.tokens_per_s == pytest.approx(1 / (9 * 10e-3 + 7 * 2e-3 + 1e-3))


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (with_host([0]), "at a context of 640 tokens: it was measured up to 0"),
        (on_device(), "the profile lacks the compute time of layer 0 on the host"),
    ],
    ids=["near contexts alone", "nothing on the CPU"],
)
def test_a_rival_that_lacks_a_measurement_is_named_with_it(made: Profile, why: str) -> None:
    found = recommend(made, asked())
    assert {name for name, _ in names_of(found)} == {"no prefetch"}
    assert {(entry.name, entry.draft) for entry in found.unpriced_rivals} == {
        ("CPU layers", None),
        ("CPU layers", DRAFT.name),
    }
    assert all(why in entry.why for entry in found.unpriced_rivals)
    said = [line for line in shown(found) if "not priced" in line]
    assert len(said) == 1
    assert said[0].startswith("CPU layers: not priced: ")
    assert why in said[0]
    assert sum("not priced" in line for line in shown(found, explain=True)) == 2


def test_weights_that_memory_does_not_hold_are_not_mapped_and_that_is_said() -> None:
    found = recommend(profile(), request(80 * MB, host_bytes=40 * MB, never_speculate=True))
    (mapped,) = found.unpriced_rivals
    assert mapped.name == "mapped"
    assert "the weights take 152.6" in mapped.why


# --- a draft on the host beside a device ---


def on_host_passes() -> tuple[DraftMeasurement, ...]:
    """Twice as slow as on the device."""
    return tuple(
        DraftMeasurement(
            fingerprint=DRAFT.fingerprint,
            processor="host",
            num_tokens=512,
            context_tokens=context_tokens,
            duration_s=spread(6e-3),
        )
        for context_tokens in (0, FAR_TOKENS)
    )


def test_a_draft_on_the_host_takes_its_own_time_and_no_device_memory() -> None:
    made = on_device()
    made = made.model_copy(update={"draft_passes": (*made.draft_passes, *on_host_passes())})
    here, there = (
        recommend(made, replace(asked(), wishes=replace(asked().wishes, draft_on_host=is_on_host)))
        for is_on_host in (False, True)
    )
    for found, device in ((here, 0), (there, 1)):
        assert isinstance(found.plan.draft, ChainDraft)
        assert found.plan.draft.device == device
    assert there.plan.memory.draft_bytes == 0 < there.plan.memory.host_draft_bytes
    chains = {
        device: rank(made, replace(asked(), wishes=replace(asked().wishes, draft_on_host=bool(device)))).fastest_chains(
            DRAFT.fingerprint
        )
        for device in (0, 1)
    }
    for near, far in zip(chains[0], chains[1], strict=True):
        assert far.terms.draft_s == pytest.approx(2 * near.terms.draft_s)


def test_a_draft_on_the_host_that_was_not_measured_there_is_refused_by_name() -> None:
    found = recommend(on_device(), replace(asked(), wishes=replace(asked().wishes, draft_on_host=True)))
    assert found.answer == "do not speculate"
    refusal = next(refusal for refusal in found.refused if refusal.draft == DRAFT.name)
    assert "passes of the draft" in refusal.why
    assert "on the host" in refusal.why


def test_a_draft_on_the_host_is_no_other_plan_where_the_host_verifies_and_that_is_said() -> None:
    made, usual = profile(), request(80 * MB)
    found = [
        recommend(
            made,
            request_for(made, usual.budget, usual.wishes.link, "cpu", usual.workload, draft_on_host=is_asked),
        )
        for is_asked in (False, True)
    ]
    assert found[0].plan == found[1].plan
    assert [any("--draft-on-host changes nothing" in line for line in entry.warnings) for entry in found] == [
        False,
        True,
    ]
