"""Menus and sliders of the what-if page: what they offer comes from `planner.notebook`, what they say is read here."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import TypeVar

import ipywidgets as widgets

from planner.changes import Change
from planner.cli import menus
from planner.notebook import FromCatalogue, FromProfile, Menu, Menus, sizes_of

T = TypeVar("T")
ROW = widgets.Layout(flex_flow="row wrap", width="100%")
_STYLE = {"description_width": "68px"}
_NO_DRAFT = "none"


class SubjectControls:
    """Which machine and models, of the catalogue or of the user's own profile; `opened` is called with each choice."""

    def __init__(self, subject: FromCatalogue, opened: Callable[[FromCatalogue | FromProfile], None]) -> None:
        self._opened = opened
        self._is_quiet = False
        self.machine = _dropdown("machine", menus.machine_names(), subject.machine)
        self.target = _dropdown("target", menus.target_names(), subject.target)
        self.draft = _dropdown("draft", _drafts(subject.target), subject.draft or _NO_DRAFT)
        self.text = _dropdown("text", menus.texts(), subject.text)
        self.path = _text("profile", "what planner profile wrote: profile.json")
        self.reports = _text("reports", "of runs to learn from: report.json, or a folder")
        self.link = _text("link", "this machine's; or emulated:2GB/s")
        self.memory = _text("memory", "this machine's; or less of it: 12GiB")
        self.load = widgets.Button(description="load", icon="folder-open", layout=widgets.Layout(width="90px"))
        self.target.observe(lambda _: self._offer_drafts(), names="value")
        for menu in (self.machine, self.draft, self.text):
            menu.observe(lambda _: self._open(), names="value")
        self.load.on_click(lambda _: self._load())
        catalogue = widgets.Box([self.machine, self.target, self.draft, self.text], layout=ROW)
        profile = widgets.Box([self.path, self.reports, self.link, self.memory, self.load], layout=ROW)
        self.root = widgets.Tab(children=[catalogue, profile], titles=("catalogue", "my profile"))

    def _open(self) -> None:
        if not self._is_quiet:
            self._opened(
                FromCatalogue(
                    machine=self.machine.value,
                    target=self.target.value,
                    draft=None if self.draft.value == _NO_DRAFT else self.draft.value,
                    text=self.text.value,
                )
            )

    def _load(self) -> None:
        typed = (self.path.value, self.reports.value, self.link.value, self.memory.value)
        self._opened(FromProfile.typed(*typed))

    def _offer_drafts(self) -> None:
        """The drafts of a new target, of which the smallest is taken."""
        offered = _drafts(self.target.value)
        self._is_quiet = True
        self.draft.options = offered
        self.draft.value = offered[min(1, len(offered) - 1)]
        self._is_quiet = False
        self._open()


class ChangeControls:
    """What is to differ from the situation; `changed` is called with each move. The value of each is what it shows."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._is_quiet = False
        self._meant: dict[str, dict[str, object]] = {}  # by control, what each of its texts stands for
        self.device_bytes = _slider("memory")
        self.link_bytes_per_s = _slider("link")
        self.context_tokens = _slider("context")
        self.codec = _dropdown("codec")
        self.domain = _dropdown("text")
        self.draft = _dropdown("draft")
        self.kind = _dropdown("kind")
        self.num_nodes = _slider("length")
        self.kind.observe(lambda _: self._offer_sizes(), names="value")
        for name in _FIELDS:
            if name != "kind":
                self._control(name).observe(lambda _: self._say(), names="value")
        self.root = widgets.Box([self._control(name) for name in _FIELDS], layout=ROW)

    def offer(self, offered: Menus) -> None:
        """Take what a new situation offers, and leave it as it is."""
        with self._quietly():
            for field in fields(offered):
                self._fill(field.name, getattr(offered, field.name))
            self._fill("num_nodes", sizes_of(None))

    def change(self) -> Change:
        """What the controls say."""
        meant = {name: self._meant[name][self._control(name).value] for name in _FIELDS}
        return Change(**meant)  # type: ignore[arg-type]

    def _control(self, name: str) -> widgets.Widget:
        return getattr(self, name)

    def _fill(self, name: str, menu: Menu[T]) -> None:
        """Offer a menu, and choose what is now; a control with nothing to choose is hidden."""
        control, self._meant[name] = self._control(name), dict(menu)
        now = next(text for text, meant in menu if meant in (None, "raw"))
        control.options = [text for text, _ in menu]
        control.value = now
        control.layout.display = "none" if len(menu) < 2 else "flex"

    def _offer_sizes(self) -> None:
        kind = self._meant["kind"][self.kind.value]
        with self._quietly():
            self._fill("num_nodes", sizes_of(kind))  # type: ignore[arg-type]
        self._say()

    def _say(self) -> None:
        if not self._is_quiet:
            self._changed()

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        before, self._is_quiet = self._is_quiet, True
        try:
            yield
        finally:
            self._is_quiet = before


_FIELDS = ("device_bytes", "link_bytes_per_s", "context_tokens", "codec", "domain", "draft", "kind", "num_nodes")


def _drafts(target: str) -> tuple[str, ...]:
    return (_NO_DRAFT, *menus.draft_names(target))


def _dropdown(name: str, options: Sequence[str] = (), value: str | None = None) -> widgets.Dropdown:
    return widgets.Dropdown(options=options, value=value, description=name, style=_STYLE, layout=_layout())


def _slider(name: str) -> widgets.SelectionSlider:
    """A slider over a menu; it is asked once it rests, so that no answer comes late."""
    return widgets.SelectionSlider(
        options=["now"], description=name, style=_STYLE, layout=_layout(), continuous_update=False
    )


def _text(name: str, hint: str) -> widgets.Text:
    return widgets.Text(description=name, placeholder=hint, style=_STYLE, layout=_layout())


def _layout() -> widgets.Layout:
    return widgets.Layout(width="340px")
