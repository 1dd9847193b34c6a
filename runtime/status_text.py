"""What the live line says of a run: pass, layer, link, speed and what was accepted, in as many columns as there are."""

from collections import deque
from collections.abc import Sequence

from planner.contracts.quantities import format_bytes_per_s, format_tokens_per_s
from runtime.decode import Round
from runtime.model import StreamProgress
from runtime.progress import Progress

_WINDOW_S = 3.0  # over which the link's rate is taken, longer where copies are rarer


class StatusText:
    """Composes the line from one look at the run after another; all times are the caller's, in seconds."""

    def __init__(self, started_s: float) -> None:
        self._started_s = started_s
        self._link = LinkRate()
        self._rounds = RoundSums()

    def line(self, progress: Progress, now_s: float, num_columns: int) -> str:
        """The line now. What does not fit is left out from the end, whole figures at a time."""
        if progress.stream is not None:
            self._link.add(now_s, progress.stream.copied_bytes)
        self._rounds.add_from(progress.rounds)
        line = f"{now_s - self._started_s:.0f} s"
        for figure in self._figures(progress, now_s):
            if len(line) + 2 + len(figure) > num_columns:
                break
            line += f"  {figure}"
        return line[:num_columns]

    def _figures(self, progress: Progress, now_s: float) -> list[str]:
        """The most telling first; none for what is not known yet."""
        figures = [_pass(progress)]
        if progress.stream is not None:
            figures.append(_place(progress.stream, progress.num_layers))
            rate = self._link.bytes_per_s(now_s)
            figures += [] if rate is None else [f"link {format_bytes_per_s(rate)}"]
        rounds = self._rounds
        if rounds.num_rounds:
            figures.append(format_tokens_per_s(rounds.num_tokens / rounds.spent_s))
            if progress.has_draft:
                mean = rounds.num_accepted / rounds.num_rounds
                last = progress.rounds[rounds.num_rounds - 1]
                figures.append(f"accepted {mean:.1f}, last {last.num_accepted_tokens}/{last.num_draft_tokens}")
        return figures


class RoundSums:
    """Sums over the rounds so far; each is added once."""

    def __init__(self) -> None:
        self.num_rounds = 0
        self.num_tokens = 0
        self.num_accepted = 0
        self.spent_s = 0.0

    def add_from(self, rounds: Sequence[Round]) -> None:
        """Add those that are new."""
        for entry in rounds[self.num_rounds :]:
            self.num_rounds += 1
            self.num_tokens += len(entry.tokens)
            self.num_accepted += entry.num_accepted_tokens
            self.spent_s += entry.compute.round_s


class LinkRate:
    """Bytes per second between the ends of copies, which may lie further apart than looks at their count."""

    def __init__(self) -> None:
        self._ends: deque[tuple[float, int]] = deque()  # when the count was seen to have grown

    def add(self, now_s: float, copied_bytes: int) -> None:
        """The count now."""
        ends = self._ends
        if ends and ends[-1][1] == copied_bytes:
            return
        ends.append((now_s, copied_bytes))
        while len(ends) > 2 and ends[1][0] <= now_s - _WINDOW_S:
            ends.popleft()

    def bytes_per_s(self, now_s: float) -> float | None:
        """The rate lately; falling where no copy has ended for longer than before. None before two of them."""
        if len(self._ends) < 2:
            return None
        (first_s, first_bytes), (last_s, last_bytes) = self._ends[0], self._ends[-1]
        is_stalled = now_s - last_s > max(_WINDOW_S, last_s - first_s)
        return (last_bytes - first_bytes) / ((now_s if is_stalled else last_s) - first_s)


def _pass(progress: Progress) -> str:
    match progress.phase:
        case "prompt":
            return f"prompt, pass {progress.pass_number}/{progress.num_prompt_passes}"
        case "check":
            return "verifying"
    return f"pass {progress.pass_number}"


def _place(stream: StreamProgress, num_layers: int) -> str:
    unit = stream.unit
    return f"head {unit.index + 1}" if unit.kind == "head_chunk" else f"layer {unit.index + 1}/{num_layers}"
