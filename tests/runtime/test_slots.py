"""Every interleaving of the two lanes on the very Ring, judged by a model of the slots that knows nothing of counts.

Covered: any number of passes, aborted at any point and restarted at any unit, a copy under way or not, for all
(num_slots, num_units) up to (4, 7); and each rule of the ring removed in turn, which must be caught. Threads are not
covered here (test_lane), nor device streams (test_link_cuda).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Literal

import pytest

from runtime.slots import Ring

SlotState = Literal["written", "unread", "in use", "voided"]  # voided: still written, by a copy that nobody wants
Slot = tuple[SlotState, int] | None  # with the unit whose bytes it holds
Key = tuple[int | Slot, ...]

SIZES = [(num_slots, num_units) for num_slots in range(1, 5) for num_units in range(1, 8)]


class ViolationError(Exception):
    """What went wrong in the slots, with the shortest way there."""


@dataclass(frozen=True, slots=True)
class World:
    """The ring under test and, beside it, what truly lies in the slots."""

    ring: Ring
    slots: tuple[Slot, ...]
    next_unit: int  # the one that the compute lane needs, or has in use

    def steps(self) -> Iterator[tuple[str, Callable[[], "World"]]]:
        """Everything that either lane may do next."""
        if self.ring.may_begin_copy():
            yield "begin", self.begin
        for slot, content in enumerate(self.slots):
            if content is not None and content[0] in ("written", "voided"):
                yield f"end({slot})", partial(self.end, slot)
        if any(content is not None and content[0] == "in use" for content in self.slots):
            yield "free", self.free
        elif self.ring.may_acquire():
            yield "acquire", self.acquire

    def restarts(self) -> Iterator[tuple[str, Callable[[], "World"]]]:
        """The pass aborted here, and the next one begun at any unit."""
        for unit in range(self.ring.num_units):
            yield f"restart({unit})", partial(self.restart, unit)

    def begin(self) -> "World":
        """A copy starts to write: the slot must be free."""
        ring = replace(self.ring)
        copy = ring.begin_copy()
        slot, unit = ring.slot_of(copy), ring.unit_of(copy)
        if (former := self.slots[slot]) is not None:
            raise ViolationError(f"a copy writes slot {slot}, which is {former[0]}")
        return World(ring, self._with(slot, ("written", unit)), self.next_unit)

    def end(self, slot: int) -> "World":
        """A copy has arrived; where more than one were under way, any of them may be the first."""
        ring = replace(self.ring)
        ring.end_copy()
        content = self.slots[slot]
        assert content is not None
        return World(ring, self._with(slot, None if content[0] == "voided" else ("unread", content[1])), self.next_unit)

    def acquire(self) -> "World":
        """The compute lane starts to read: the slot must hold the unit it needs, complete."""
        ring = replace(self.ring)
        slot = ring.slot_of(ring.acquire())
        content = self.slots[slot]
        if content is None:
            raise ViolationError(f"compute reads slot {slot}, which is empty")
        if content[0] != "unread":
            raise ViolationError(f"compute reads slot {slot}, which is {content[0]}")
        if content[1] != self.next_unit:
            raise ViolationError(f"compute reads unit {content[1]} in place of unit {self.next_unit}")
        return World(ring, self._with(slot, ("in use", self.next_unit)), self.next_unit)

    def free(self) -> "World":
        """The compute lane is done with the unit and needs the one after it."""
        ring = replace(self.ring)
        ring.free()
        slots = tuple(None if content is not None and content[0] == "in use" else content for content in self.slots)
        return World(ring, slots, (self.next_unit + 1) % ring.num_units)

    def restart(self, unit: int) -> "World":
        """An aborted pass: nobody wants what was copied any more, and a copy that is under way goes on writing."""
        ring = replace(self.ring)
        ring.restart(unit)
        slots: tuple[Slot, ...] = tuple(
            ("voided", content[1]) if content is not None and content[0] in ("written", "voided") else None
            for content in self.slots
        )
        return World(ring, slots, unit)

    def key(self, *, is_folded: bool) -> Key:
        """What the future depends on: the counts' differences and, of the counts, what is left modulo N * m."""
        ring = self.ring
        counts = [getattr(ring, field.name) for field in fields(Ring)[2:]]
        period = ring.num_slots * ring.num_units
        base = min(counts[1:]) // period * period if is_folded else 0
        origin, *counts = (count - base for count in counts)
        return (origin % ring.num_units, *counts, self.next_unit, *self.slots)

    def _with(self, slot: int, content: Slot) -> tuple[Slot, ...]:
        return (*self.slots[:slot], content, *self.slots[slot + 1 :])


@dataclass(frozen=True, slots=True)
class Explored:
    """All states that were reached, folded, and the largest number of slots that held something at once."""

    states: frozenset[Key]
    max_slots_filled: int


def explore(ring: Ring, *, has_restarts: bool, num_passes: int | None = None) -> Explored:
    """Run the ring through every interleaving, breadth first: over any number of passes, where no number is given.

    Raises: ViolationError, where a unit is read wrong, a slot is overwritten, nothing can happen any more, or an
    action that the ring allows fails in it.
    """
    first = World(ring, (None,) * ring.num_slots, 0)
    is_folded = num_passes is None
    history: dict[Key, tuple[Key, str] | None] = {first.key(is_folded=is_folded): None}
    frontier = [first]
    states = {first.key(is_folded=True)}
    max_slots_filled = 0
    while frontier:
        reached = []
        for world in frontier:
            if num_passes is not None and world.ring.freed >= num_passes * ring.num_units:
                continue
            here = world.key(is_folded=is_folded)
            steps = list(world.steps())
            if not steps:
                raise ViolationError(f"deadlock: {_path(history, here)}")
            for name, step in [*steps, *(world.restarts() if has_restarts else ())]:
                try:
                    following = step()
                except ViolationError as violation:
                    raise ViolationError(f"{violation}: {_path(history, here, name)}") from None
                except AssertionError as error:
                    raise ViolationError(f"the ring's own check fails: {_path(history, here, name)}") from error
                key = following.key(is_folded=is_folded)
                if key not in history:
                    history[key] = (here, name)
                    states.add(following.key(is_folded=True))
                    max_slots_filled = max(max_slots_filled, sum(content is not None for content in following.slots))
                    reached.append(following)
        frontier = reached
    return Explored(frozenset(states), max_slots_filled)


def _path(history: dict[Key, tuple[Key, str] | None], key: Key, *last: str) -> str:
    names = list(last)
    while (former := history[key]) is not None:
        key, name = former
        names.append(name)
    return " ".join(reversed(names))


# the ring as it is


@pytest.mark.parametrize(("num_slots", "num_units"), SIZES)
def test_no_interleaving_of_any_number_of_passes_reads_or_writes_a_wrong_slot(num_slots: int, num_units: int) -> None:
    explored = explore(Ring(num_units=num_units, num_slots=num_slots), has_restarts=False)
    assert explored.max_slots_filled == num_slots  # and the ring uses every slot it has


@pytest.mark.parametrize(("num_slots", "num_units"), SIZES)
def test_no_interleaving_with_passes_aborted_anywhere_and_restarted_at_any_unit_goes_wrong(
    num_slots: int, num_units: int
) -> None:
    explored = explore(Ring(num_units=num_units, num_slots=num_slots), has_restarts=True)
    assert explored.max_slots_filled == num_slots


@pytest.mark.parametrize(("num_slots", "num_units"), [(1, 1), (1, 3), (2, 2), (2, 3), (3, 2), (3, 4), (4, 3)])
def test_unfolded_passes_reach_no_state_that_the_folded_ones_do_not(num_slots: int, num_units: int) -> None:
    folded = explore(Ring(num_units=num_units, num_slots=num_slots), has_restarts=False)
    unfolded = explore(
        Ring(num_units=num_units, num_slots=num_slots), has_restarts=False, num_passes=2 * num_slots + 1
    )  # N passes are one period
    assert unfolded.states == folded.states


def test_the_states_of_one_slot_and_one_unit_are_the_four_that_one_can_count() -> None:
    # nothing yet; being written; unread; in use; after `free` the counts are all 1, which folds to the first
    assert len(explore(Ring(num_units=1, num_slots=1), has_restarts=False).states) == 4


def test_copies_run_on_across_the_pass_boundary() -> None:
    ring = Ring(num_units=3, num_slots=2)
    carried = []
    for _ in range(7):
        copy = ring.begin_copy()
        carried.append((ring.unit_of(copy), ring.slot_of(copy)))
        ring.end_copy()
        ring.acquire()
        ring.free()
    assert carried == [(0, 0), (1, 1), (2, 0), (0, 1), (1, 0), (2, 1), (0, 0)]


# the ring with one rule removed: `python -O` strips the ring's own checks, so the mutants do without them as well


class Unchecked(Ring):
    """The ring without its assertions."""

    def begin_copy(self) -> int:
        self.begun += 1
        return self.begun - 1

    def end_copy(self) -> None:
        self.copied += 1

    def acquire(self) -> int:
        self.acquired += 1
        return self.acquired - 1

    def free(self) -> None:
        self.freed += 1


class CopyIgnoresFreed(Unchecked):
    def may_begin_copy(self) -> bool:
        return self.begun == self.copied


class CopyWaitsForAcquiredNotFreed(Unchecked):
    def may_begin_copy(self) -> bool:
        return self.begun == self.copied and self.begun - self.acquired < self.num_slots


class CopyIgnoresTheOneBefore(Unchecked):
    def may_begin_copy(self) -> bool:
        return self.begun - self.freed < self.num_slots


class OneCopyTooManyInFlight(Unchecked):
    def may_begin_copy(self) -> bool:
        return self.begun == self.copied and self.begun - self.freed <= self.num_slots


class AcquireIgnoresCopied(Unchecked):
    def may_acquire(self) -> bool:
        return True


class AcquireWaitsForBegunNotCopied(Unchecked):
    def may_acquire(self) -> bool:
        return self.acquired < self.begun


class CopiedNotedAtItsStart(Unchecked):
    def begin_copy(self) -> int:
        self.begun += 1
        self.copied += 1
        return self.begun - 1

    def end_copy(self) -> None:
        pass


class SlotByUnit(Unchecked):
    def slot_of(self, copy: int) -> int:
        return self.unit_of(copy) % self.num_slots


class SlotOfTheNextCopy(Unchecked):
    """Copies go where they should, but compute looks one slot further."""

    def acquire(self) -> int:
        return super().acquire() + 1


class FreedAtAcquire(Unchecked):
    def acquire(self) -> int:
        self.freed += 1
        return super().acquire()

    def free(self) -> None:
        pass


class FreesOneTooMany(Unchecked):
    def free(self) -> None:
        self.freed += 2


class FreesNothing(Unchecked):
    def free(self) -> None:
        pass


class UnitWithoutOrigin(Unchecked):
    def unit_of(self, copy: int) -> int:
        return copy % self.num_units


class RestartVoidsNothing(Unchecked):
    def restart(self, unit: int) -> None:
        self.origin = self.begun - unit


class RestartForgetsAcquired(Unchecked):
    def restart(self, unit: int) -> None:
        self.origin = self.begun - unit
        self.freed = self.begun


class RestartForgetsFreed(Unchecked):
    def restart(self, unit: int) -> None:
        self.origin = self.begun - unit
        self.acquired = self.begun


class RestartVoidsOnlyWhatHasArrived(Unchecked):
    def restart(self, unit: int) -> None:
        self.origin = self.begun - unit
        self.acquired = self.freed = self.copied


class RestartTakesTheCopyUnderWayForEnded(Unchecked):
    def restart(self, unit: int) -> None:
        super().restart(unit)
        self.copied = self.begun


class RestartCountsFromCopied(Unchecked):
    def restart(self, unit: int) -> None:
        super().restart(unit)
        self.origin = self.copied - unit


class RestartCountsFromFreed(Unchecked):
    def restart(self, unit: int) -> None:
        freed = self.freed
        super().restart(unit)
        self.origin = freed - unit


class RestartAlwaysAtUnitZero(Unchecked):
    def restart(self, unit: int) -> None:
        super().restart(0)


class RestartKeepsTheOrigin(Unchecked):
    def restart(self, unit: int) -> None:
        origin = self.origin
        super().restart(unit)
        self.origin = origin


class RestartFromScratch(Unchecked):
    def restart(self, unit: int) -> None:
        self.origin = -unit
        self.begun = self.copied = self.acquired = self.freed = 0


def never(num_slots: int, num_units: int) -> bool:
    return False


def one_slot(num_slots: int, num_units: int) -> bool:
    return num_slots == 1


def one_unit(num_slots: int, num_units: int) -> bool:
    return num_units == 1


def slots_divide_units(num_slots: int, num_units: int) -> bool:
    return num_units % num_slots == 0


# The mutant, the sizes at which it does what the ring does, and what the model sees at every other size
Mutant = tuple[type[Ring], Callable[[int, int], bool], str]

MUTANTS_OF_A_PASS: list[Mutant] = [
    (CopyIgnoresFreed, never, r"a copy writes slot 0, which is unread"),
    (CopyWaitsForAcquiredNotFreed, never, r"a copy writes slot 0, which is in use: .* acquire begin$"),
    (OneCopyTooManyInFlight, never, r"a copy writes slot 0, which is unread"),
    # the second copy may arrive before the first, and is then counted as the first
    (CopyIgnoresTheOneBefore, one_slot, r"compute reads slot 0, which is written: begin begin end\(1\) acquire$"),
    (AcquireIgnoresCopied, never, r"compute reads slot 0, which is empty: acquire$"),
    (AcquireWaitsForBegunNotCopied, never, r"compute reads slot 0, which is written: begin acquire$"),
    (CopiedNotedAtItsStart, never, r"compute reads slot 0, which is written: begin acquire$"),
    (SlotByUnit, slots_divide_units, r"a copy writes slot 0, which is unread"),
    (SlotOfTheNextCopy, one_slot, r"compute reads slot 1, which is empty"),
    (FreedAtAcquire, never, r"a copy writes slot 0, which is in use: .* acquire begin$"),
    (FreesOneTooMany, never, r"a copy writes slot [01], which is unread: .* free begin end\(0\) begin$"),
    (FreesNothing, never, r"deadlock: .* acquire free$"),
]

MUTANTS_OF_A_RESTART: list[Mutant] = [
    # with one slot, this wait alone keeps the next copy off the slot that the aborted one still writes
    (CopyIgnoresTheOneBefore, never, r"begin restart\(0\) begin$|begin begin end\(1\) acquire$"),
    (UnitWithoutOrigin, one_unit, r"compute reads unit 0 in place of unit 1: restart\(1\)"),
    (RestartVoidsNothing, never, r"compute reads slot 0, which is empty: begin end\(0\) restart\(0\) acquire$"),
    (RestartForgetsAcquired, never, r"compute reads slot 0, which is empty: begin end\(0\) restart\(0\) acquire$"),
    (RestartForgetsFreed, never, r"deadlock: .* restart\(0\)$"),
    # the copy that was under way is taken for the first unit after the restart
    (RestartVoidsOnlyWhatHasArrived, never, r"compute reads slot 0, .*: begin restart\(0\) end\(0\) acquire$"),
    (RestartTakesTheCopyUnderWayForEnded, never, r"begin restart\(0\) (begin|end\(0\) acquire)$"),
    (RestartCountsFromCopied, one_unit, r"compute reads unit 1 in place of unit 0: begin restart\(0\)"),
    (RestartCountsFromFreed, one_unit, r"compute reads unit 1 in place of unit 0: begin end\(0\) restart\(0\)"),
    (RestartAlwaysAtUnitZero, one_unit, r"compute reads unit 0 in place of unit 1: restart\(1\)"),
    (RestartKeepsTheOrigin, one_unit, r"compute reads unit 0 in place of unit 1: restart\(1\)"),
    (RestartFromScratch, never, r"a copy writes slot 0, which is voided: begin restart\(0\) begin$"),
]


def assert_caught(mutant: Mutant, *, has_restarts: bool) -> None:
    """The explorer passes the mutant at just those sizes where it is no mutant, and says what goes wrong elsewhere."""
    ring, is_equivalent, what_is_seen = mutant
    for num_slots, num_units in SIZES:
        if is_equivalent(num_slots, num_units):
            explore(ring(num_units=num_units, num_slots=num_slots), has_restarts=has_restarts)
            continue
        with pytest.raises(ViolationError, match=what_is_seen):
            explore(ring(num_units=num_units, num_slots=num_slots), has_restarts=has_restarts)


def _name(mutant: Mutant) -> str:
    return mutant[0].__name__


@pytest.mark.parametrize("mutant", MUTANTS_OF_A_PASS, ids=_name)
def test_a_rule_removed_is_seen_without_any_restart(mutant: Mutant) -> None:
    assert_caught(mutant, has_restarts=False)


@pytest.mark.parametrize("mutant", MUTANTS_OF_A_RESTART, ids=_name)
def test_a_rule_removed_is_seen_when_passes_restart(mutant: Mutant) -> None:
    assert_caught(mutant, has_restarts=True)


def test_one_copy_too_few_in_flight_leaves_a_slot_unused_or_stands_still() -> None:
    class OneCopyTooFewInFlight(Unchecked):
        def may_begin_copy(self) -> bool:
            return self.begun == self.copied and self.begun - self.freed < self.num_slots - 1

    assert explore(OneCopyTooFewInFlight(num_units=5, num_slots=3), has_restarts=False).max_slots_filled == 2
    with pytest.raises(ViolationError, match="deadlock"):
        explore(OneCopyTooFewInFlight(num_units=5, num_slots=1), has_restarts=False)


@pytest.mark.parametrize(("num_slots", "num_units"), SIZES)
def test_the_ring_does_not_rely_on_its_own_assertions(num_slots: int, num_units: int) -> None:
    unchecked = explore(Unchecked(num_units=num_units, num_slots=num_slots), has_restarts=True)
    assert unchecked == explore(Ring(num_units=num_units, num_slots=num_slots), has_restarts=True)


@pytest.mark.parametrize("misuse", ["begin_copy", "end_copy", "acquire", "free"])
def test_the_ring_refuses_what_it_does_not_allow(misuse: str) -> None:
    ring = Ring(num_units=2, num_slots=1)
    if misuse == "begin_copy":
        ring.begin_copy()  # the second would run beside it
    with pytest.raises(AssertionError):
        getattr(ring, misuse)()
