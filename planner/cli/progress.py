"""A bar on stderr while something takes long; nothing where stderr is no terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Show = Callable[[str, int, int | None], None]  # what is being done, how many steps are, and of how many


@contextmanager
def progress_bar(label: str) -> Iterator[Show]:
    """The function that moves the bar; it is gone once that is done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(label, total=None)
        yield lambda said, num_done, num_steps: bars.update(task, description=said, completed=num_done, total=num_steps)
