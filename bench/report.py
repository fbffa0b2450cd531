"""The record → docs/explanation/benchmarks.md and docs/images/benchmarks.svg; nothing on either is typed by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

import results

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "explanation/benchmarks.md"
PLOT = DOCS / "images/benchmarks.svg"

Sample = dict[str, Any]

_HEAD = """\
# Benchmarks

<!-- Written by `python bench/run.py`, from bench/results/bench.json. Changes by hand are lost. -->

Ours and other makers of images, doing the same work: a bootable Debian 13 with a cloud kernel, systemd, SSH and
cloud-init, an environment of {files:,} files and {megabytes:,.0f} MB at `/opt/conda`, and a small service.
`make bench` measures again; the peers' configurations are in [`bench/peers/`](../../bench/peers/).

![CPU seconds of each contender in each scenario](../images/benchmarks.svg)

Measured on {cores} cores of {cpu}, {memory:.0f} GB of memory, Linux {kernel}, {system}, {file_system}; {tools}; {date}.

"""

_METHOD = """\
## How it is measured

- Each peer runs directly before or directly after ours, in turn; a **ratio** is ours over the peer's CPU seconds in
  one such pair, and the table has the median of them. Other columns are medians of all runs. Below 1, ours took less.
  Ours runs once before all that, unmeasured: nobody's figures are of the run that finds nothing in the page cache.
- **CPU**: user and system seconds of the whole process tree, double-forked children included. **Kernel**: seconds of
  the kernel's own threads meanwhile, where loop devices and write-back do their work: in no process's account, and
  the whole machine's. **With kernel** is the ratio of both together.
- **Memory**: the largest sum of the tree's private and shared pages and of what tmpfs grew by, sampled ten times a
  second; the page cache is left out. **Written**: bytes made dirty on file systems that have a disk below.
- **Wall** ends with the program, before the kernel has written everything back; ours has written its image by then,
  past the page cache. That is warm. What a cold run must not find is put away before it, not removed, and it begins
  a minute after the run before it, which removed files of its own: ext4 makes whoever creates files within a minute
  of a removal pay for it (`RECENTCY_MIN` in fs/ext4/ialloc.c).
- **Image**: bytes on disk, holes left out. After each run the image is looked into, unmeasured: it must have the
  environment and the application that were asked for.
- Packages come from an archive on this machine, over the loopback address, and each peer has its own caches besides.
  A changed environment begins with its packages: rattler, which is what ours links with, brings the folder that a peer
  reads up to date within the peer's time; when cold, Python's compileall makes its byte code as well, which the images
  of all have. Ours verifies every package's SHA-256 besides, and compares what was linked with its records; peers leave
  signatures unchecked: the archive has none.
- Where the host lacks device-mapper, udev or systemd, stand-ins take the place of `kpartx`, `udevadm` and
  `systemd-nspawn` for the peers that need them (`bench/shims/`, each says what it does).
"""


def write(record: results.Record) -> None:
    """Write the page and the plot."""
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PLOT.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(record), encoding="utf-8")
    PLOT.write_text(plot(record), encoding="utf-8")


def page(record: results.Record) -> str:
    """The page, as Markdown."""
    machine = record.machine
    tools = ", ".join(f"{name} {version}" for name, version in machine["tools"].items())
    head = _HEAD.format(
        files=record.environment["files"],
        megabytes=record.environment["bytes"] / 1e6,
        **{**machine, "memory": machine["memory"] / 1e9, "tools": tools},
    )
    sections = [_section(record, name, text) for name, text in record.scenarios.items()]
    return head + "".join(sections) + _scale(record) + _METHOD + "\n" + _contenders(record)


def _section(record: results.Record, scenario: str, text: str) -> str:
    samples = [one for one in record.samples if one["scenario"] == scenario]
    if not samples:
        return ""
    rows = [
        [
            name,
            *_figures(mine),
            _ratio(samples, name, "cpu_s"),
            _ratio(samples, name, "cpu_s", "kernel_s"),
            str(len(mine)),
        ]
        for name, mine in _by_contender(samples, record)
    ]
    columns = [
        "",
        "wall s",
        "CPU s",
        "kernel s",
        "memory MB",
        "written MB",
        "image MB",
        "ours / peer, CPU",
        "with kernel",
        "runs",
    ]
    more = _COLD if scenario == "cold" else ""
    return f"## {scenario.capitalize()}: {text}\n\n{_table(columns, rows)}\n{more}"


#: Below the table of cold starts.
_COLD = """\
`Debian alone` is mmdebstrap and dpkg with the packages of our machine, and nothing else: a builder that installs them
takes at least that. Beside it, ours sums up all that it keeps, and runs a playbook; the peers do not.

"""


def _scale(record: results.Record) -> str:
    samples = [one for one in record.samples if one["scenario"] == "scale"]
    if not samples:
        return ""
    rows = [[name, *_figures(mine), str(len(mine))] for name, mine in _by_contender(samples, record)]
    columns = ["", "wall s", "CPU s", "kernel s", "memory MB", "written MB", "images MB", "runs"]
    intro = (
        "Ours makes them with one command; `exports` is `qemu-img convert` of one finished disk to the same format, "
        "as often: what any builder must at least do for them."
    )
    return (
        f"## Scale: twenty machines that differ in their application\n\n{intro}\n\n{_table(columns, rows)}\n"
    )


def _by_contender(samples: Iterable[Sample], record: results.Record) -> list[tuple[str, list[Sample]]]:
    """Samples of each contender, ours first, then by CPU."""
    groups: dict[str, list[Sample]] = {}
    for one in samples:
        groups.setdefault(one["contender"], []).append(one)
    return sorted(
        groups.items(),
        key=lambda item: (not item[0].startswith("ours"), median(one["cpu_s"] for one in item[1])),
    )


def _figures(samples: Sequence[Sample]) -> list[str]:
    def middle(name: str) -> float:
        return float(median(one[name] for one in samples))

    return [
        f"{middle('wall_s'):.1f}",
        f"{middle('cpu_s'):.1f}",
        f"{middle('kernel_s'):.1f}",
        f"{middle('memory') / 1e6:,.0f}",
        f"{middle('written') / 1e6:,.0f}",
        f"{middle('allocated') / 1e6:,.0f}",
    ]


def ratios(samples: Iterable[Sample], peer: str, *figures: str, ours: str = "ours") -> list[float]:
    """The sum of ``figures`` of ``ours`` over that of ``peer``, in each pair that has both."""
    pairs: dict[str, dict[str, float]] = {}
    for one in samples:
        pairs.setdefault(one["pair"], {})[one["contender"]] = sum(one[figure] for figure in figures)
    return [pair[ours] / pair[peer] for pair in pairs.values() if ours in pair and pair.get(peer)]


def _ratio(samples: Sequence[Sample], name: str, *figures: str) -> str:
    if name.startswith("ours"):
        return ""
    found = ratios(samples, name, *figures)
    return f"**{median(found):.2f}**" if found else "-"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _contenders(record: results.Record) -> str:
    parts = ["## Who took part\n"]
    for name, about in record.contenders.items():
        if "skipped" in about:
            parts.append(f"- **{name}**: {about['skipped'].strip()}.")
            continue
        lines = [f"**{name}** ({about['version']}): {about['output']}."]
        if about.get("lacks"):
            lines.append(f"Less than ours: {'; '.join(about['lacks'])}.")
        lines += [f"{note[0].upper()}{note[1:]}." for note in about.get("notes", [])]
        left = sorted({what for one in record.samples if one["contender"] == name for what in one["left"]})
        if left:
            lines.append(f"Left behind, and cleaned up by the bench: {'; '.join(left)}.")
        if about.get("failed"):
            lines.append(f"**Did not finish**: `{about['failed'].splitlines()[0]}`.")
        parts.append("- " + "\n  ".join(lines))
    return "\n".join(parts) + "\n"


# --- the plot ---------------------------------------------------------------------------------------

_WIDTH, _LABEL, _BAR, _GAP, _TITLE = 760, 150, 16, 6, 30
_COLORS = {True: "#1b7f5c", False: "#9aa5b1"}


def plot(record: results.Record) -> str:
    """CPU seconds as bars, a panel for each scenario, each with a scale of its own."""
    parts: list[str] = []
    top = 10
    for scenario in record.scenarios:
        samples = [one for one in record.samples if one["scenario"] == scenario]
        if samples:
            bars = [
                (name, float(median(one["cpu_s"] for one in mine)))
                for name, mine in _by_contender(samples, record)
            ]
            parts.append(_panel(f"{scenario}: {record.scenarios[scenario]}", bars, top))
            top += _TITLE + len(bars) * (_BAR + _GAP) + 12
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{top}" viewBox="0 0 {_WIDTH} {top}" '
        'font-family="sans-serif" font-size="12" role="img">\n'
        "<title>CPU seconds of each contender in each scenario</title>\n"
        f'<rect width="{_WIDTH}" height="{top}" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def _panel(title: str, bars: Sequence[tuple[str, float]], top: int) -> str:
    scale = (_WIDTH - _LABEL - 70) / max(value for _, value in bars)
    lines = [f'<text x="10" y="{top + 16}" font-weight="bold" fill="#222">{escape(title)} (CPU s)</text>']
    for number, (name, value) in enumerate(bars):
        y = top + _TITLE + number * (_BAR + _GAP)
        color = _COLORS[name.startswith("ours")]
        width = max(1.0, value * scale)
        lines += [
            f'<text x="{_LABEL - 8}" y="{y + 12}" text-anchor="end" fill="#222">{escape(name)}</text>',
            f'<rect x="{_LABEL}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{color}"/>',
            f'<text x="{_LABEL + width + 6:.1f}" y="{y + 12}" fill="#222">{value:.1f}</text>',
        ]
    return "\n".join(lines)
