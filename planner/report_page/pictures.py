"""What one sees in each figure of a page, and the tables of its numbers."""

from planner.report_page.document import Picture
from planner.what_if import Case
from planner.what_if_tables import TableData, length_table, memory_table, round_table

CAPTIONS = {
    "lengths": "The longer the draft, the more tokens a round may add, and the more work is in vain where the draft is "
    "wrong. The band is P10-P90.",
    "round": "For each kind of draft the round that it makes: what the device does above, what the link does below. "
    "Hatched is waiting for weights.",
    "memory": "What lies in device memory against the budget, and what lies in host memory.",
    "timeline": "One round, lane by lane. Where a lane is empty it waits for another.",
    "map": "Every square is a machine with other memory and another link bandwidth, with the draft that is best there.",
    "prices": "Which purchase pays: each with the best plan for it.",
    "machines": "The same model on each machine, with the best draft there.",
}


def case_tables(case: Case) -> dict[str, TableData]:
    """The numbers of the figures that move with every change."""
    curve = case.curve
    found = {} if curve is None else {"lengths": length_table(curve)}
    return {**found, "round": round_table(case.parts()), "memory": memory_table(case.plan)}


def picture(key: str, table: TableData | None = None) -> Picture:
    """A figure with what one sees in it."""
    return Picture(key=key, caption=CAPTIONS[key], table=table)
