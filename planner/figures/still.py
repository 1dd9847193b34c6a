"""The what-if page without widgets: what is missing, and the same figures as pictures that nothing moves."""

from planner.figures.shown import pictures_of
from planner.figures.view import view_figures
from planner.notebook import COMPARED_MACHINES, FromCatalogue, FromProfile, Session, answer
from planner.what_if_view import look


class StillPage:
    """A page of pictures, which notebooks show as HTML."""

    def __init__(self, subject: FromCatalogue | FromProfile, notice: str) -> None:
        """Raises: DraftstreamError, where nothing can be said of the subject."""
        self.session = Session(subject)
        self.notice = notice
        what_if = self.session.what_if
        view = look(what_if.situation.profile.machine.name, what_if, self.session.machines(COMPARED_MACHINES))
        self.said = answer(view.case)
        self.figures = view_figures(view)

    @property
    def root(self) -> "StillPage":
        """What a cell shows, as of the page with widgets."""
        return self

    def _repr_html_(self) -> str:
        return pictures_of(self.figures.values(), self.notice, self.said)
