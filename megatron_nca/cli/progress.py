"""Rate and time left of long work on stderr: a bar on a terminal, a line every few seconds elsewhere."""

import sys
import time
from collections.abc import Callable

REPORT_SECONDS = 5


class Progress:
    """`total` of `unit` are to be done; `note` says what else there is to say at each report."""

    def __init__(self, total: int, unit: str, note: Callable[[], str]) -> None:
        self.total, self.unit, self.note = total, unit, note
        self.done, self.begin, self.reported = 0, time.monotonic(), time.monotonic()
        self.bar = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                return self  # tqdm belongs to the extra `log`; the lines say the same
            self.bar = tqdm(total=self.total, unit=f" {self.unit}", file=sys.stderr)
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def add(self, count: int) -> None:
        self.done += count
        if self.bar is not None:
            self.bar.set_postfix_str(self.note(), refresh=False)
            self.bar.update(count)
        elif time.monotonic() - self.reported >= REPORT_SECONDS:
            self.reported = time.monotonic()
            rate = self.done / (self.reported - self.begin)
            left = f"{(self.total - self.done) / rate:,.0f} s left" if self.done else f"none of the {self.unit} yet"
            print(
                f"{self.done:,} of {self.total:,} {self.unit}, {self.note()}, {rate:,.0f} {self.unit}/s, {left}",
                file=sys.stderr,
                flush=True,
            )
