"""The components that are both predicted and measured: how each is named, read off a Performance, and shown."""

from collections.abc import Callable
from dataclasses import dataclass

from planner.contracts.performance import Performance
from planner.contracts.quantities import format_bytes, format_bytes_per_s, format_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One figure of a run; its name carries the unit, its label is for people."""

    name: str
    label: str
    of: Callable[[Performance], float | None]
    shown: Callable[[float], str]
    is_memory: bool = False


def components_of(predicted: Performance, measured: Performance) -> tuple[Component, ...]:
    """Those that both have; memory by its parts, or as one where device and host cannot be told apart."""
    has_parts = measured.device_bytes is not None
    return tuple(
        component
        for component in COMPONENTS
        if component.of(predicted) is not None
        and component.of(measured) is not None
        and not (has_parts and component.name == "total_bytes")
    )


def error_frac(predicted: float, measured: float) -> float | None:
    """By how much was measured more (+) or less (-) than predicted, of what was predicted; None where that is 0."""
    return measured / predicted - 1 if predicted else None


def _plain(value: float) -> str:
    return f"{value:.2f}"


def _host_s(of: Performance) -> float | None:
    """The host's time and what nothing explains: nobody predicts the two apart."""
    return None if of.round is None else of.round.host_s + of.round.unexplained_s


def _total_bytes(of: Performance) -> int | None:
    if of.total_bytes is not None or of.device_bytes is None or of.host_bytes is None:
        return of.total_bytes
    return of.device_bytes + of.host_bytes


COMPONENTS = (
    Component(name="generated_tokens_per_s", label="tok/s", of=lambda of: of.generated_tokens_per_s, shown=_plain),
    Component(name="ttft_s", label="first token", of=lambda of: of.ttft_s, shown=format_s),
    Component(name="tokens_per_round", label="tokens per round", of=lambda of: of.tokens_per_round, shown=_plain),
    Component(
        name="round_s", label="round", of=lambda of: None if of.round is None else of.round.round_s, shown=format_s
    ),
    Component(
        name="link_busy_s", label="link busy", of=lambda of: None if of.link is None else of.link.busy_s, shown=format_s
    ),
    Component(
        name="compute_s",
        label="compute",
        of=lambda of: None if of.round is None else of.round.compute_s,
        shown=format_s,
    ),
    Component(
        name="waiting_for_weights_s",
        label="waiting for weights",
        of=lambda of: None if of.round is None else of.round.waiting_for_weights_s,
        shown=format_s,
    ),
    Component(
        name="draft_s", label="draft", of=lambda of: None if of.round is None else of.round.draft_s, shown=format_s
    ),
    Component(name="host_s", label="host", of=_host_s, shown=format_s),
    Component(
        name="link_bytes_per_s",
        label="link rate",
        of=lambda of: None if of.link is None else of.link.bytes_per_s,
        shown=format_bytes_per_s,
    ),
    Component(
        name="device_bytes", label="device memory", of=lambda of: of.device_bytes, shown=format_bytes, is_memory=True
    ),
    Component(name="host_bytes", label="host memory", of=lambda of: of.host_bytes, shown=format_bytes, is_memory=True),
    Component(name="total_bytes", label="memory", of=_total_bytes, shown=format_bytes, is_memory=True),
)
