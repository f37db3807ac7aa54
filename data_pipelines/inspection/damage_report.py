"""What `mmfusion data verify` found: counted for the terminal, listed in a file."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import reduce
from pathlib import Path
from typing import Any, TextIO

from torch import distributed

from mmfusion import files, launcher
from mmfusion.errors import CorruptSample

FIRST = 5  # findings of each reason that a report keeps
FIGURES = ("shards", "samples", "members", "bytes", "indexes", "damaged")


@dataclass
class Report:
    """What was looked at and found.

    Attributes:
        indexes: `there`, `made` where they were missing, `made anew` where they did not fit.
        damaged: findings by reason; `first` tells the first few of each.
        headers: the first shard of each pattern (by its number), and that shard's header.
    """

    shards: int = 0
    samples: int = 0
    members: int = 0
    bytes: int = 0
    indexes: Counter = field(default_factory=Counter)
    damaged: Counter = field(default_factory=Counter)
    first: dict[str, list[str]] = field(default_factory=dict)
    headers: dict[int, tuple[str, dict]] = field(default_factory=dict)

    def add(self, damage: CorruptSample) -> None:
        """Count a finding."""
        self.damaged[damage.reason] += 1
        told = self.first.setdefault(damage.reason, [])
        if len(told) < FIRST:
            told.append(str(damage))

    def mixed(self, pattern: int, path: str, header: dict) -> CorruptSample | None:
        """What is wrong where a shard's header is not that of the pattern's first shard."""
        first, expected = self.headers.setdefault(pattern, (path, header))
        if header == expected:
            return None
        what = f"{path} and {first} were made with different settings"
        return CorruptSample("shard", f"{what}; keep one kind in a folder")

    def plus(self, other: "Report") -> "Report":
        """The report of both, which may be damaged where each alone is well."""
        sums = {name: getattr(self, name) + getattr(other, name) for name in FIGURES}
        first = {
            reason: (self.first.get(reason, []) + other.first.get(reason, []))[:FIRST]
            for reason in {**self.first, **other.first}
        }
        both = Report(**sums, first=first, headers=dict(self.headers))
        for pattern, (path, header) in other.headers.items():
            if damage := both.mixed(pattern, path, header):
                both.add(damage)
        return both

    def lines(self) -> list[str]:
        """The report for a terminal."""
        said = [
            f"looked at {self.shards} shards: {self.samples:,} samples, {self.members:,} members, "
            f"{self.bytes:,} bytes"
        ]
        if self.indexes:
            said.append("indexes: " + ", ".join(f"{n} {what}" for what, n in self.indexes.items()))
        for reason, count in self.damaged.most_common():
            told = self.first[reason]
            said += [f"damaged, {reason}: {count}", *(f"  {each}" for each in told)]
            if count > len(told):
                said.append(f"  and {count - len(told)} more")
        return [*said, "damaged" if self.damaged else "all is well"]


def together(report: Report) -> Report:
    """The reports of all processes that a launcher such as `torchrun` started, as one.

    They wait for each other: a launcher stops the others when one ends with an exit code.
    """
    if not os.environ.get("MASTER_ADDR") or launcher.place().world == 1:
        return report
    launcher.join()
    distributed.init_process_group("gloo", timeout=timedelta(days=7))
    reports = [Report()] * distributed.get_world_size()
    distributed.all_gather_object(reports, report)
    distributed.destroy_process_group()
    return reduce(Report.plus, reports)


@contextmanager
def listed(path: Path | None, report: Report) -> Iterator[Callable[[dict[str, Any]], None]]:
    """What writes findings to a JSON file; it appears as a whole, with the report at its end."""
    if path is None:
        yield lambda entry: None
        return
    count = 0

    def write(entry: dict[str, Any]) -> None:
        nonlocal count
        file.write((",\n" if count else "\n") + json.dumps(entry))
        count += 1

    file: TextIO
    with files.writing(path) as part, part.open("w", encoding="utf-8") as file:
        file.write('{"findings": [')
        yield write
        told = {name: getattr(report, name) for name in FIGURES}
        file.write("\n],\n" + json.dumps(told)[1:] + "\n")
