"""The what-if page without widgets: what is missing, and the same figures as pictures that nothing moves."""

from planner.figures.shown import pictures_of
from planner.figures.what_if import lengths_figure, memory_figure, prices_figure, round_figure, timeline_figure
from planner.notebook import FromCatalogue, FromProfile, Session, answer


class StillPage:
    """A page of pictures, which notebooks show as HTML."""

    def __init__(self, subject: FromCatalogue | FromProfile, notice: str) -> None:
        """Raises: DraftstreamError, where nothing can be said of the subject."""
        self.session = Session(subject)
        self.notice = notice
        case = self.session.what_if.case()
        curve = case.lengths()
        self.said = answer(case)
        self.figures = {} if curve is None else {"lengths": lengths_figure(curve)}
        self.figures |= {
            "round": round_figure(case.parts()),
            "memory": memory_figure(case.plan),
            "timeline": timeline_figure(case.spans(1)),
            "prices": prices_figure(case.prices),
        }

    @property
    def root(self) -> "StillPage":
        """What a cell shows, as of the page with widgets."""
        return self

    def _repr_html_(self) -> str:
        return pictures_of(self.figures.values(), self.notice, self.said)
