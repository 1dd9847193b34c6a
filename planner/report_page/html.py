"""A document as one HTML file: everything it needs lies in it, compressed where it is large, and nothing is fetched.

What may run is named by its hash in the page's policy, so that nothing that slipped into a name or a text can, and the
browser itself refuses every request.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from planner.contracts.base import write_atomically
from planner.figures.style import TEMPLATES
from planner.report_page.document import Document, Facts, Picture, Section, Stand
from planner.report_page.terms import Explainer, escaped
from planner.what_if_tables import TableData

MOST_BYTES = 6_000_000  # that a page should have, to open at once on a phone
_TOP_PIXELS = 20  # above a figure whose title stands in the page
_RIGHT_PIXELS = 36  # for numbers beside bars

Json = Mapping[str, object]


def html_of(document: Document) -> str:
    """The page. Names and texts of others are escaped wherever they stand."""
    explainer = Explainer()
    style, script, plotly = _resource("page.css"), _resource("page.js"), get_plotlyjs()
    body = "\n".join(_body(document, explainer))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_policy(script, plotly)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escaped(document.title)}</title>
<style>{style}</style>
</head>
<body>
{body}
<script type="application/octet-stream" id="plotly">{_packed(plotly)}</script>
<script type="application/octet-stream" id="data">{_packed(json.dumps(_data(document)))}</script>
<script>{script}</script>
</body>
</html>
"""


def write_page(path: Path, document: Document) -> int:
    """Write the page; its bytes. Raises: ResourceFailureError, where the file cannot be written."""
    page = html_of(document).encode()
    write_atomically(path, page)
    return len(page)


def _policy(*scripts: str) -> str:
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{code}'" for code in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
        "form-action 'none'"
    )


def _resource(name: str) -> str:
    return (files("planner.report_page") / name).read_text(encoding="utf-8")


def _packed(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


# --- what one reads ---


def _body(document: Document, explainer: Explainer) -> Iterator[str]:
    subtitle = explainer.explained(document.subtitle)
    yield f"<header><h1>{escaped(document.title)}</h1><p class=faint>{subtitle}</p></header>"
    yield "<noscript><p class=card>Pictures and sliders need JavaScript; all numbers are in the tables.</p></noscript>"
    yield "<p class=card id=no-pictures hidden></p>"
    yield "<main>"
    explainer.begin_section()
    yield (
        '<section class="card answer" aria-live="polite">'
        f"<p class=headline>{explainer.explained(document.headline)}</p>"
        f"<dl class=facts>{_facts(document.facts, explainer)}</dl></section>"
    )
    if document.sliders or document.lengths:
        explainer.begin_section()
        yield _controls(document, explainer)
    for section in document.sections:
        explainer.begin_section()
        yield from _section(section, explainer)
    words = f"<details><summary>What the words mean</summary><dl class=words>{explainer.glossary()}</dl></details>"
    yield f"<section><h2>Words</h2>{words}</section>"
    yield "</main>"


def _facts(facts: Facts, explainer: Explainer) -> str:
    return "".join(f"<dt>{explainer.explained(name)}</dt><dd>{explainer.explained(fact)}</dd>" for name, fact in facts)


def _controls(document: Document, explainer: Explainer) -> str:
    rows = []
    for number, slider in enumerate(document.sliders):
        texts = escaped(json.dumps(slider.texts))
        rows.append(
            f'<label for="axis-{number}"><span>{explainer.explained(slider.label)}</span><output for="axis-{number}">'
            f"{escaped(slider.texts[slider.start_idx])}</output>"
            f'<input type="range" id="axis-{number}" data-axis min="0" max="{len(slider.texts) - 1}" step="1" '
            f'value="{slider.start_idx}" data-start="{slider.start_idx}" data-texts="{texts}"></label>'
        )
    said = ""
    if document.lengths:
        start = document.lengths.index(document.start_length)
        rows.append(
            f'<label for="lengths"><span>{explainer.explained("draft length")}</span>'
            f'<output for="lengths" id="length-output">{document.start_length}</output>'
            f'<input type="range" id="lengths" data-lengths min="0" max="{len(document.lengths) - 1}" step="1" '
            f'value="{start}" data-start="{start}"></label>'
        )
        said = '<span id="length-said"></span>'
    rows.append(f'<p class="said">{said}<button type="button" class="reset">back to the start</button></p>')
    return f'<section class="card controls" aria-label="sliders">{"".join(rows)}</section>'


def _section(section: Section, explainer: Explainer) -> Iterator[str]:
    yield f"<section><h2>{explainer.explained(section.title)}</h2>"
    if section.lead:
        yield f"<p>{explainer.explained(section.lead)}</p>"
    if section.text is not None:
        lines = (escaped(line) for line in section.text.split("\n"))
        yield f"<pre class=card>{chr(10).join(lines)}</pre>"
    if section.facts:
        yield f"<dl class=facts>{_facts(section.facts, explainer)}</dl>"
    if section.items:
        yield f"<ul>{''.join(f'<li>{explainer.explained(item)}</li>' for item in section.items)}</ul>"
    if section.pictures:
        yield f"<div class=pictures>{''.join(_picture(picture, explainer) for picture in section.pictures)}</div>"
    for table in section.tables:
        yield f"<div class=scroll>{table_html(table, explainer)}</div>"
    yield "</section>"


def _picture(picture: Picture, explainer: Explainer) -> str:
    explainer.begin_section()
    caption = f"<figcaption>{explainer.explained(picture.caption)}</figcaption>"
    numbers = ""
    if picture.table is not None:
        numbers = (
            f'<details><summary>the numbers</summary><div class=scroll data-table="{picture.key}">'
            f"{table_html(picture.table, explainer)}</div></details>"
        )
    return (
        f'<figure class=card data-figure="{picture.key}"><h3></h3><p class=sub></p><div class=plot></div>'
        f"{caption}{numbers}</figure>"
    )


def table_html(table: TableData, explainer: Explainer) -> str:
    """The table and its notes."""
    explainer.begin_section()
    caption = f"<caption>{explainer.explained(table.title)}</caption>"
    head = "".join(f"<th scope=col>{explainer.explained(column)}</th>" for column in table.columns)
    rows = "".join(_row(row, explainer) for row in table.rows)
    notes = "".join(f"<p class=note>{explainer.explained(note)}</p>" for note in table.notes)
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{notes}"


def _row(cells: Iterable[str], explainer: Explainer) -> str:
    name, *values = cells
    return f"<tr><td>{explainer.explained(name)}</td>{''.join(f'<td>{escaped(value)}</td>' for value in values)}</tr>"


# --- what is drawn ---


def _data(document: Document) -> Json:
    live = sorted({key for stand in document.stands for key in stand.figures})
    return {
        "templates": {theme: template.to_plotly_json() for theme, template in TEMPLATES.items()},
        "figures": {key: _figure(figure) for key, figure in document.figures.items()},
        "live": live,
        "lengths": document.lengths,
        "stands": [_stand(stand) for stand in document.stands],
    }


def _stand(stand: Stand) -> Json:
    explainer = Explainer()
    return {
        "headline": explainer.explained(stand.headline),
        "facts": _facts(stand.facts, explainer),
        "figures": {key: _figure(figure) for key, figure in stand.figures.items()},
        "tables": {key: table_html(table, explainer) for key, table in stand.tables.items()},
        "lengths": stand.lengths,
    }


def _figure(figure: go.Figure) -> Json:
    """The figure as JSON; its title stands in the page, where it wraps, and its template is the theme's."""
    made = json.loads(figure.to_json())
    layout = made["layout"]
    layout.pop("template", None)
    title = layout.pop("title", {})
    has_labels_on_top = any(entry.get("yref") == "paper" for entry in layout.get("annotations", ()))
    layout["margin"] = {"t": _TOP_PIXELS + 12 * has_labels_on_top, "r": _RIGHT_PIXELS}
    layout["legend"] = {**layout.get("legend", {}), "yref": "container", "y": 0, "yanchor": "bottom"}
    return {
        "title": title.get("text", ""),
        "subtitle": title.get("subtitle", {}).get("text", ""),
        "data": made["data"],
        "layout": layout,
    }
