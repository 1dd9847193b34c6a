"""A session resumes, keeps to its deadline, repeats what others disturbed, and rejects an unsteady machine."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from planner.contracts.errors import ResourceFailureError
from planner.contracts.profile import MemoryMeasurement
from runtime.measure.cache import measuring_alone
from runtime.measure.journal import Findings, Journal
from runtime.measure.session import Group, Session, Step

STEADY = (1.0, 1.0)
ONLY_MEMORY: tuple[Group, ...] = ("memory",)


class Bench:
    """Steps that count how often they were taken, on a clock that each of them moves by a second."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.now_s = 0.0

    def steps(self, *names: str, group: Group = "links") -> list[Step]:
        return [Step(group=group, name=name, run=self._step(name)) for name in names]

    def _step(self, name: str) -> Callable[[], Findings]:
        def run() -> Findings:
            self.taken.append(name)
            self.now_s += 1.0
            return Findings(memory=(MemoryMeasurement(part="host_overhead", num_bytes=len(self.taken)),))

        return run


def sentinel_of(*values: float) -> Callable[[], tuple[float, ...]]:
    """A sentinel that returns these one after the other, the last of them for ever."""
    pending = list(values)

    def sentinel() -> tuple[float, ...]:
        return STEADY[0], pending.pop(0) if len(pending) > 1 else pending[0]

    return sentinel


@contextmanager
def session(
    path: Path, bench: Bench, *sentinels: float, stop_at_s: float = 100.0, is_quick: bool = False
) -> Iterator[Session]:
    journal = Journal.open(path / "a.journal", "key")
    yield Session(
        journal,
        sentinel_of(*(sentinels or STEADY)),
        stop_at_s=stop_at_s,
        is_quick=is_quick,
        now_s=lambda: bench.now_s,
    )
    journal.close()


def test_killed_run_is_taken_up_where_it_ended(tmp_path: Path) -> None:
    bench = Bench()
    with session(tmp_path, bench) as first:
        first.run(bench.steps("a", "b"))
    with session(tmp_path, bench) as second:
        outcome = second.run(bench.steps("a", "b", "c"))
    assert bench.taken == ["a", "b", "c"]
    assert [entry.memory[0].num_bytes for entry in outcome.findings] == [1, 2, 3]
    assert outcome.num_missing == 0


def test_deadline_leaves_a_note_of_what_is_missing(tmp_path: Path) -> None:
    bench = Bench()
    with session(tmp_path, bench, stop_at_s=2.0) as run:
        outcome = run.run(bench.steps("a", "b", "c", group="acceptance"))
    assert bench.taken == ["a", "b"]
    assert "acceptance: 1 of 3 steps not measured for lack of time" in outcome.notes
    assert outcome.num_missing == 1


def test_deadline_leaves_no_group_without_any_step(tmp_path: Path) -> None:
    bench = Bench()
    steps = [*bench.steps("a", "b", "c"), *bench.steps("d", "e", group="compute"), *bench.steps("f", group="rounds")]
    with session(tmp_path, bench, stop_at_s=4.0) as run:
        run.run(steps)
    assert bench.taken == ["a", "d", "f", "b"]


def test_groups_left_out_are_named(tmp_path: Path) -> None:
    bench = Bench()
    journal = Journal.open(tmp_path / "a.journal", "key")
    run = Session(journal, sentinel_of(1.0), only=ONLY_MEMORY, stop_at_s=9.0, now_s=lambda: 0.0)
    outcome = run.run([*bench.steps("a"), *bench.steps("m", group="memory")])
    journal.close()
    assert bench.taken == ["m"]
    assert "links: not measured, left out by --only" in outcome.notes


def test_only_the_disturbed_step_is_taken_again(tmp_path: Path) -> None:
    bench = Bench()
    with session(tmp_path, bench, 1.0, 1.0, 1.10, 1.10, 1.0) as run:  # before a, after each, and later
        outcome = run.run(bench.steps("a", "b", "c"))
    assert bench.taken == ["a", "b", "c", "b", "c"]
    assert [entry.memory[0].num_bytes for entry in outcome.findings] == [1, 4, 5]
    assert outcome.drift_frac == pytest.approx(0.0)
    assert not any("slower" in note for note in outcome.notes)


def test_what_was_taken_before_the_machine_calmed_down_is_taken_again(tmp_path: Path) -> None:
    bench = Bench()
    with session(tmp_path, bench, 1.2, 1.2, 1.0) as run:  # before a, after it, from then on
        outcome = run.run(bench.steps("a", "b"))
    assert bench.taken == ["a", "b", "a", "b"]
    assert outcome.drift_frac == pytest.approx(0.0)


def test_the_calmest_of_several_attempts_is_kept(tmp_path: Path) -> None:
    bench = Bench()
    with session(tmp_path, bench, 1.0, 1.10, 1.0, 1.30, 1.20, stop_at_s=3.5) as run:
        outcome = run.run(bench.steps("a"))
    assert bench.taken == ["a", "a", "a"]
    assert outcome.findings[0].memory[0].num_bytes == 1
    assert outcome.drift_frac == pytest.approx(0.10)
    assert "links: the machine was up to 10.0% slower at times" in outcome.notes


def test_quick_run_notes_a_disturbance_and_repeats_nothing(tmp_path: Path) -> None:
    bench = Bench()
    with session(tmp_path, bench, 1.0, 1.10, is_quick=True) as run:
        outcome = run.run(bench.steps("a"))
    assert bench.taken == ["a"]
    assert "links: the machine was up to 10.0% slower at times" in outcome.notes


def test_machine_that_never_calms_down_is_rejected_unless_forced(tmp_path: Path) -> None:
    bench = Bench()
    with (
        session(tmp_path, bench, 1.0, 1.30, stop_at_s=2.5) as run,
        pytest.raises(ResourceFailureError, match="too unsteady") as caught,
    ):
        run.run(bench.steps("a"))
    assert caught.value.exit_code == 6
    assert bench.taken == ["a", "a"]
    with session(tmp_path, bench, 1.30, stop_at_s=4.5) as run:
        assert run.run(bench.steps("a"), is_forced=True).drift_frac == pytest.approx(0.30)
    assert bench.taken == ["a"] * 4, "what was rejected is measured again, and held against the best ever seen"


def test_step_that_the_deadline_cut_off_counts_as_missing(tmp_path: Path) -> None:
    bench = Bench()

    def cut() -> Findings:
        bench.now_s = 5.0
        return Findings()

    with session(tmp_path, bench, stop_at_s=5.0) as run:
        outcome = run.run([Step(group="acceptance", name="a", run=cut)])
    assert outcome.findings == ()
    assert outcome.num_missing == 1


def test_another_process_that_measures_is_named_and_nothing_is_measured_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRAFTSTREAM_CACHE", str(tmp_path))
    hold = (
        "from runtime.measure.cache import measuring_alone\nwith measuring_alone(): print('held', flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ResourceFailureError, match="another profiler is at work") as caught, measuring_alone():
            pass
        assert caught.value.exit_code == 6
        assert f"process {holder.pid} holds {tmp_path / 'measuring.lock'}" in caught.value.why
        assert "wait for it" in caught.value.remedy
        holder.kill()
    with measuring_alone():  # what was killed holds nothing
        assert (tmp_path / "measuring.lock").read_text() == f"{os.getpid()}\n"
