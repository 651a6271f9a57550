"""Whether an engine works on its calls: one that stands still may have a server before it that answers all else."""

from __future__ import annotations

from typing import Final

from backends.api import Gauges

LOOKS: Final = 3
"""In a row, without progress, while calls wait."""
SECONDS: Final = 5.0
"""For which an engine that counts its steps must stand still to be taken for hung. Looks are up to two seconds apart:
it is found within ten, and a step of five, which slow engines make of long prompts, is none."""
LONGEST_STEP, STEPS = 30.0, 2.0
"""One that goes on so many seconds after it was last seen to work has made a longer step, and is given so many times
as long from then on."""
UNCOUNTED_SECONDS, UNCOUNTED_PAUSES, UNCOUNTED_LOOKS = 30.0, 3.0, 100
"""One that does not count must be silent for at least so long, so many times its longest pause, after so many looks
that saw it work. Before them nothing is known of its pauses."""

Signs = tuple[int, int | None, float | None]


class Progress:
    """What looks at one engine have seen of its work. Times are in seconds, all of one monotonic clock."""

    __slots__ = ("_counts", "_found_at", "_idle", "_longest", "_looks", "_signs", "_still", "_worked_at", "hung")

    def __init__(self) -> None:
        self.hung = False
        """It stands still; False again when it has made progress."""
        self._signs: Signs | None = None
        """What only an engine that works changes. vLLM counts no step that only reads prompts: its cache fills then."""
        self._counts = False
        self._idle = True
        """No call waited for it at the last look."""
        self._worked_at = self._found_at = float("-inf")
        """When it was last seen to work, or to have nothing to do; and when it was last found to hang."""
        self._still = 0
        """Looks in a row that saw no progress."""
        self._longest = 0.0
        """The longest pause after which it went on by itself, where that teaches patience."""
        self._looks = 0
        """Those that saw it work while calls waited."""

    @property
    def doubtful(self) -> bool:
        """The last look saw no progress, though calls wait."""
        return self._still > 0

    def look(self, gauges: Gauges | None, waiting: int, heard_at: float, now: float) -> bool:
        """Whether it is found to hang. `waiting`: our calls that wait for its next words; `heard_at`: when words of any
        call came last. It is found again after as many looks, as long as it stands still and calls wait."""
        signs = None if gauges is None or not gauges.steps else (gauges.steps, gauges.prefix_queries, gauges.kv_usage)
        moved = signs is not None and signs != self._signs
        if moved and not self._counts:  # pauses before it counted were of another kind: it loaded, or compiled
            self._counts, self._longest = True, 0.0
        self._signs = signs or self._signs
        if moved or heard_at > self._worked_at or (gauges is not None and gauges.asleep):
            self._worked(now, waiting)
        elif not waiting or self._idle:
            self._worked_at, self._still = self._worked_at if self.hung else now, 0
        elif signs is None and self._counts:
            return False  # it did not tell now, or is another process that has done nothing yet
        else:
            self._still += 1
        self._idle = not waiting
        if self._still < LOOKS or now - max(self._worked_at, self._found_at) < self._patience():
            return False
        self.hung, self._still, self._found_at = True, 0, now
        return True

    def _worked(self, now: float, waiting: int) -> None:
        pause = now - self._worked_at
        if self.hung if self._counts else self._still:
            self._longest = max(self._longest, pause if pause <= LONGEST_STEP or not self._counts else 0.0)
        self._looks += waiting > 0
        self.hung, self._worked_at, self._still = False, now, 0

    def _patience(self) -> float:
        """Seconds for which it must stand still."""
        if self._counts:
            return max(SECONDS, STEPS * self._longest)
        if self._looks < UNCOUNTED_LOOKS:
            return float("inf")
        return max(UNCOUNTED_SECONDS, UNCOUNTED_PAUSES * self._longest)
