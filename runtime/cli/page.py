"""The page that `runtime generate --html` writes."""

from collections.abc import Sequence
from pathlib import Path

from planner.contracts.report import Report
from planner.contracts.timeline import Span


def prepare_page(path: Path) -> None:
    """Before a run, look whether the page can be written, and load what draws: an interrupt leaves little time for it.

    Raises: UsageError, ResourceFailureError.
    """
    from planner.extras import check_page

    check_page(path)
    import planner.report_page.run  # noqa: F401


def write_run_page(path: Path, report: Report, prompt: str, spans: Sequence[Span]) -> None:
    """Write what ran, beside what was predicted. Raises: ResourceFailureError."""
    from planner.report_page.html import write_page
    from planner.report_page.run import run_document

    write_page(path, run_document(report, prompt, spans))
