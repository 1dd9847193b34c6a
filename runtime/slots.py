"""The ring of slots as a pure state machine: what may be copied, waited for and freed. Threads and streams drive it.

Copy k carries unit (k - origin) mod m into slot k mod N, k being a running count over all passes, so that copies run on
across the pass boundary. One copy and one use are under way at a time; both lanes take the copies in order.
"""

from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Ring:
    """N slots that m units pass through, over and over.

    The counts only grow: freed <= acquired <= copied <= begun <= freed + N, except that a restart voids every copy
    begun before it by counting it as freed.
    """

    num_units: int
    num_slots: int
    origin: int = 0
    begun: int = 0
    copied: int = 0
    acquired: int = 0
    freed: int = 0

    def unit_of(self, copy: int) -> int:
        """The unit that a copy carries."""
        return (copy - self.origin) % self.num_units

    def slot_of(self, copy: int) -> int:
        """The slot that a copy fills."""
        return copy % self.num_slots

    def may_begin_copy(self) -> bool:
        """Whether the next copy may start: the lane is idle, and the last user of its slot has freed it."""
        return self.begun == self.copied and self.begun - self.freed < self.num_slots

    def begin_copy(self) -> int:
        """Start the next copy and return its number."""
        assert self.may_begin_copy()
        self.begun += 1
        return self.begun - 1

    def end_copy(self) -> None:
        """The copy under way has arrived."""
        assert self.copied == self.begun - 1
        self.copied += 1

    def may_acquire(self) -> bool:
        """Whether the next unit lies complete in its slot."""
        return self.acquired < self.copied

    def acquire(self) -> int:
        """Take the next unit into use and return the number of the copy that brought it."""
        assert self.may_acquire()
        assert self.acquired == self.freed
        self.acquired += 1
        return self.acquired - 1

    def free(self) -> None:
        """The unit in use is no longer read."""
        assert self.freed == self.acquired - 1
        self.freed += 1

    def restart(self, unit: int) -> None:
        """Void everything copied ahead, after an aborted pass: the next copy carries `unit`.

        A copy that is under way ends as usual, its content unused; the lane starts no other before that.
        """
        self.origin = self.begun - unit
        self.acquired = self.freed = self.begun
