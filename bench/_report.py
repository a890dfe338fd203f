# SPDX-License-Identifier: Apache-2.0
"""The table of what _side_by_side.py played, as text (a Markdown table) and as JSON.

The ratio is byre's median to that of the better peer (or limit, where the row says so), and in brackets the middle half of the
ratios of single turns.  Where the bar lies inside that half, wall time is noisier than the bar, and the ratio of CPU decides.
"""
import dataclasses

from _side_by_side import GIB, MIB, median

HEADS = ("row", "byre", "the better", "ratio (middle half)", "bar", "", "CPU", "CPU ratio", "peak MiB", "result MiB", "others", "turns")


def shown(seconds, unit):
    if unit == "request":
        return f"{seconds * 1e6:.2f} us"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"


def quartiles(values):
    values = sorted(values)
    return values[len(values) // 4], values[len(values) - 1 - len(values) // 4]


class Result:
    """A row with what was found."""

    def __init__(self, row, place, found, kinds):
        self.row, self.found, self.kinds = row, found, kinds
        self.key = "cpu" if row.decides == "cpu" else "seconds"
        self.work = row.work(place) / GIB if row.work else None
        self.rival = self.best("limit" if row.against == "limit" else "peer")
        self.ratio = self.cpu_ratio = self.middle = None
        if self.rival:
            self.ratio = self.of("byre") / self.of(self.rival)
            if self.of(self.rival, "cpu"):
                self.cpu_ratio = self.of("byre", "cpu") / self.of(self.rival, "cpu")
            pairs = zip(found["byre"], found[self.rival])
            self.middle = quartiles([getattr(a, self.key) / max(getattr(b, self.key), 1e-12) for a, b in pairs])

    def best(self, kind):
        names = [name for name in self.found if self.kinds[name] == kind and self.found[name]]
        return min(names, key=self.of, default=None)

    def of(self, name, key=None):
        return median(self.found[name], key or self.key)

    def verdict(self):
        """"met" or "missed", and by what."""
        row, parts = self.row, []
        if row.bar is not None and self.ratio is not None:
            by_cpu = self.key == "seconds" and self.cpu_ratio and len(self.found["byre"]) > 1 and \
                self.middle[0] <= row.bar <= self.middle[1]
            ratio = self.cpu_ratio if by_cpu else self.ratio
            parts.append(("met" if ratio <= row.bar else "missed") + (" by CPU" if by_cpu else ""))
        elif row.bar is not None and row.only_byre:
            parts.append("met" if self.of("byre") * 1e6 <= row.bar else "missed")
        if row.bar_cpu is not None:
            parts.append("CPU met" if self.of("byre", "cpu") * 1e6 <= row.bar_cpu else "CPU missed")
        if row.bar_size is not None and self.rival:
            size = self.of("byre", "size") / self.of(self.rival, "size")
            parts.append(f"size {size:.3f} " + ("met" if size <= row.bar_size else "missed"))
        return ", ".join(parts)

    def bar(self):
        row = self.row
        parts = [f"{row.bar:g}" + (" us" if row.only_byre else "") + (" of the limit" if row.against == "limit" else "")] if row.bar else []
        parts += [f"{row.bar_cpu:g} us"] if row.bar_cpu else []
        return "; ".join(parts)

    def cpu(self, name):
        value = self.of(name, "cpu")
        if self.row.unit == "request":
            return f"{value * 1e6:.2f}"
        return f"{value / self.work:.2f}" if self.work else f"{value:.3f}"

    def pair(self, form):
        """Of byre and of its rival."""
        return ", ".join(form(name) for name in ("byre", self.rival) if name)

    def cells(self):
        row = self.row
        unit = " us" if row.unit == "request" else " s/GiB" if self.work else " s"
        sized = any(sample.size for sample in self.found["byre"])
        others = [f"{name} {shown(self.of(name), row.unit)}" for name in self.found
                  if name not in ("byre", self.rival) and self.found[name]]
        turns = len(self.found["byre"])
        fewer = {len(samples) for samples in self.found.values()} - {turns}
        return (row.name + (" (memory)" if row.where == "memory" else ""), shown(self.of("byre"), row.unit),
                f"{self.rival}: {shown(self.of(self.rival), row.unit)}" if self.rival else "",
                f"{self.ratio:.2f} ({self.middle[0]:.2f}-{self.middle[1]:.2f})" if self.rival else "",
                self.bar(), self.verdict(), self.pair(self.cpu) + unit, f"{self.cpu_ratio:.2f}" if self.cpu_ratio else "",
                self.pair(lambda name: f"{self.of(name, 'memory') / MIB:.0f}"),
                self.pair(lambda name: f"{self.of(name, 'size') / MIB:.1f}") if sized else "",
                ", ".join(others), str(turns) + (f" (others {min(fewer)})" if fewer else ""))

    def data(self):
        return {"group": self.row.group, "row": self.row.name, "where": self.row.where, "unit": self.row.unit,
                "bar": self.row.bar, "rival": self.rival, "ratio": self.ratio, "middle_half": self.middle,
                "cpu_ratio": self.cpu_ratio, "verdict": self.verdict(),
                "runs": {name: [dataclasses.asdict(sample) for sample in samples] for name, samples in self.found.items()}}


def table(results):
    lines, group = [], None
    rows = [result.cells() for result in results]
    widths = [max(len(line[column]) for line in [HEADS, *rows]) for column in range(len(HEADS))]

    def line(cells):
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths)) + " |"

    for result, cells in zip(results, rows):
        if result.row.group != group:
            group = result.row.group
            lines += ["", f"### {group}", "", line(HEADS), "|" + "|".join("-" * (width + 2) for width in widths) + "|"]
        lines.append(line(cells))
    return "\n".join(lines)
