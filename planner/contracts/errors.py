"""Every error a user can cause or meet, each with its exit code: what went wrong, why, and what to try."""

from collections.abc import Callable
from functools import partial
from typing import Self


class DraftstreamError(ValueError):
    """An error that is reported to the user in three lines; the exit code is that of the class."""

    exit_code = 1

    def __init__(self, what: str, *, why: str, remedy: str) -> None:
        super().__init__(f"{what}\n  why: {why}\n  try: {remedy}")
        self.what = what
        self.why = why
        self.remedy = remedy

    def _render_traceback_(self) -> list[str]:
        """What IPython shows of it in a notebook: for the user's own fault the way through our code says nothing."""
        return [f"{type(self).__name__}: {self.what}", f"  why: {self.why}", f"  try: {self.remedy}"]

    def __reduce__(self) -> tuple[Callable[[str], Self], tuple[str]]:
        """How it crosses between processes."""
        return partial(type(self), why=self.why, remedy=self.remedy), (self.what,)


class UsageError(DraftstreamError):
    """The command line asks for something that does not exist or contradicts itself."""

    exit_code = 2


class BadInputError(DraftstreamError):
    """A model, plan, prompt or other file is damaged, hostile or of a kind that cannot be run."""

    exit_code = 3


class NoFeasiblePlanError(DraftstreamError):
    """Nothing that fits the stated budgets can run the model."""

    exit_code = 4


class PlanMismatchError(DraftstreamError):
    """The plan belongs to another model or machine, or asks for a variant that is not implemented."""

    exit_code = 5


class ResourceFailureError(DraftstreamError):
    """A resource failed during the run: memory, disk, or a file that changed under the reader."""

    exit_code = 6


class SelfCheckError(DraftstreamError):
    """The run's own check failed: logits that are no numbers, or text that the target would not write."""

    exit_code = 7
