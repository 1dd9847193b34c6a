"""A timeline in the Chrome trace format, which Perfetto opens: one lane each for disk, link, compute, draft and host.

Predicted and measured timelines are written and read alike, so that they can be laid side by side.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationError

from planner.contracts.errors import BadInputError

_Microseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]

TraceLane = Literal["disk", "link", "compute", "draft", "host"]

LANES: tuple[TraceLane, ...] = ("disk", "link", "compute", "draft", "host")


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """What one lane did from one time to another, in seconds since any origin."""

    lane: TraceLane
    label: str
    start_s: float
    stop_s: float


def chrome_trace(spans: Sequence[Span], label: str) -> str:
    """The spans as JSON, times counted from the first of them; `label` names the process in the viewer."""
    origin_s = min((span.start_s for span in spans), default=0.0)
    events: list[dict[str, object]] = [_metadata("process_name", 0, label)]
    events += [_metadata("thread_name", index, lane) for index, lane in enumerate(LANES)]
    events += [
        {
            "name": span.label,
            "ph": "X",
            "pid": 1,
            "tid": LANES.index(span.lane),
            "ts": round((span.start_s - origin_s) * 1e6, 3),
            "dur": round((span.stop_s - span.start_s) * 1e6, 3),
        }
        for span in spans
    ]
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})


def spans_of_trace(content: bytes, name: str) -> tuple[Span, ...]:
    """The spans that `chrome_trace` wrote, in their order, to a nanosecond; `name` is the file's, for the error.

    Raises: BadInputError, where it is no such timeline, or an empty one.
    """
    try:
        events = _Trace.model_validate_json(content).traceEvents
        lanes = {event.tid: event.args.lane for event in events if event.ph == "M" and event.args.lane is not None}
        spans = tuple(
            Span(lane=lanes[event.tid], label=event.name, start_s=event.ts / 1e6, stop_s=(event.ts + event.dur) / 1e6)
            for event in events
            if event.ph == "X"
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise _no_timeline(name, f"{'.'.join(map(str, first['loc'])) or 'file'}: {first['msg']}") from error
    except KeyError as error:
        raise _no_timeline(name, f"its thread {error} is none of the lanes {', '.join(LANES)}") from error
    if not spans:
        raise _no_timeline(name, "it holds no span")
    return spans


class _Args(BaseModel):
    name: str = ""

    @property
    def lane(self) -> TraceLane | None:
        """The lane of that name."""
        return next((lane for lane in LANES if lane == self.name), None)


class _Event(BaseModel):
    name: str
    ph: Literal["M", "X"]
    tid: int
    ts: _Microseconds = 0.0
    dur: _Microseconds = 0.0
    args: _Args = _Args()


class _Trace(BaseModel):
    traceEvents: list[_Event]


def _no_timeline(name: str, why: str) -> BadInputError:
    return BadInputError(
        f"{name} is no timeline of ours",
        why=why,
        remedy="name what runtime generate --trace or planner simulate --trace wrote",
    )


def _metadata(kind: str, lane: int, name: str) -> dict[str, object]:
    return {"name": kind, "ph": "M", "pid": 1, "tid": lane, "args": {"name": name}}
