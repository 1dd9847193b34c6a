"""How tests read a page: as a browser does, and as a person does."""

import base64
import gzip
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser

from planner.contracts.timeline import Span

HOSTILE = "<script>alert(1)</script>\"'><img src=http://evil.example/x onerror=alert(2)>\x1b[31m\u202e&amp;"


@dataclass(slots=True)
class Read(HTMLParser):
    """A page as a browser reads it: elements with their attributes, and the text that each holds."""

    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        HTMLParser.__init__(self)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read(page: str) -> Read:
    found = Read()
    found.feed(page)
    return found


def packed(page: str, name: str) -> str:
    """What lies compressed in the page."""
    (code,) = re.findall(rf'id="{name}">([^<]*)<', page)
    return gzip.decompress(base64.b64decode(code)).decode()


def harmless(page: str) -> None:
    """What a name or a text brought along is text."""
    found = read(page)
    tags = [tag for tag, _ in found.elements]
    assert tags.count("script") == 3
    assert "img" not in tags
    assert not [name for _, attributes in found.elements for name in attributes if name.startswith("on")]
    assert "\x1b" not in page
    assert "\u202e" not in page


def plain(page: str) -> str:
    """The text without tips, entities and elements."""
    return "".join(read(re.sub(r'<span class="tip".*?</span>', "", page)).texts)


def rows(table: str) -> list[Sequence[str]]:
    """The cells of a table's body."""
    body = table.partition("<tbody>")[2].partition("</tbody>")[0]
    return [[plain(cell) for cell in re.findall(r"<td>(.*?)</td>", row)] for row in re.findall(r"<tr>(.*?)</tr>", body)]


def three_rounds() -> tuple[Span, ...]:
    """What a trace holds of three rounds of half a second, and of the start of a fourth."""
    return tuple(
        span
        for start_s in (0.0, 0.5, 1.0, 1.5)
        for span in (
            Span(lane="draft", label="draft", start_s=start_s, stop_s=start_s),
            Span(lane="link", label="layer 0", start_s=start_s, stop_s=start_s + 0.5),
            Span(lane="compute", label="layer 0", start_s=start_s + 0.4, stop_s=start_s + 0.5),
        )
    )
