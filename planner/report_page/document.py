"""What a report consists of, before it is HTML: sections with pictures and tables, and stands that sliders go to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import plotly.graph_objects as go

from planner.what_if_tables import TableData

Facts = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A figure by its key, what one sees in it, and its numbers."""

    key: str
    caption: str
    table: TableData | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A title, and below it whatever there is. `text` is a stranger's, and shown as it stands."""

    title: str
    lead: str = ""
    text: str | None = None
    facts: Facts = ()
    pictures: tuple[Picture, ...] = ()
    tables: tuple[TableData, ...] = ()
    items: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Slider:
    """What may be moved, by its values in words."""

    label: str
    texts: tuple[str, ...]
    start_idx: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """What the page shows where the sliders stand so; where nothing runs, `headline` says why, without facts."""

    headline: str
    facts: Facts = ()
    figures: Mapping[str, go.Figure] = field(default_factory=dict)
    tables: Mapping[str, TableData] = field(default_factory=dict)
    lengths: Mapping[int, str] = field(default_factory=dict)  # by draft length, in words


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A page. The stands, if there are sliders, lie in the sliders' order, the last slider running fastest."""

    title: str
    subtitle: str
    headline: str
    facts: Facts
    sections: tuple[Section, ...]
    figures: Mapping[str, go.Figure]
    sliders: tuple[Slider, ...] = ()
    stands: tuple[Stand, ...] = ()
    lengths: tuple[int, ...] = ()  # draft lengths that a slider goes through; empty: there is none
    start_length: int = 0
