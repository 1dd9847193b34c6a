"""The command `planner`: measures, decides how a model runs here, and shows what was decided.

One module per subcommand. Nothing heavy is imported before a command runs, so that help is instant.
"""

import typer

from planner.cli.compare import compare
from planner.cli.drafts import drafts
from planner.cli.plan import plan
from planner.cli.profile import profile
from planner.cli.recommend import recommend
from planner.cli.show import show
from planner.cli.simulate import simulate
from planner.cli.what_if import what_if
from planner.console import EXIT_CODES, run

app = typer.Typer(
    help="Plan how a model larger than its device's memory runs.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


for command in (profile, recommend, what_if, drafts, simulate, compare, show, plan):
    app.command(command.__name__.replace("_", "-"), epilog=EXIT_CODES)(command)


def main() -> None:
    """The console script."""
    run(app)
