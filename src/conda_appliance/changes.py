"""Two locks or two results → what changed between them, as a changelog tells it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conda_appliance import resources
from conda_appliance.lock import Lock
from conda_appliance.manifest import Manifest

#: How many lines of changed files are told, where there are more.
_SHOWN = 200


@dataclass(frozen=True, kw_only=True)
class Change:
    """A package that came, went or changed: ``before`` and ``after`` are versions, empty where there is none.

    ``size`` is by how many bytes its archive grew.
    """

    name: str
    before: str
    after: str
    size: int = 0

    @property
    def kind(self) -> str:
        """``added``, ``removed`` or ``updated``."""
        return "added" if not self.before else "removed" if not self.after else "updated"


@dataclass(frozen=True, kw_only=True)
class Section:
    """What changed in one part: the system, an environment, its wheels, the programs, the artifacts, the files."""

    title: str
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class _Said:
    version: str
    digest: str
    size: int


def between(before: Lock, after: Lock) -> list[Section]:
    """What differs between two locks, part by part; nothing for parts that are the same."""
    first, second = dict(_parts(before)), dict(_parts(after))
    titles = list(dict.fromkeys([*second, *first]))
    return _without_empty(
        Section(title=title, changes=_changes(first.get(title, {}), second.get(title, {})))
        for title in titles
    )


def of_results(before: Manifest, after: Manifest) -> list[Section]:
    """What differs between two results beside their packages: versions, the sizes of the artifacts."""
    sizes = [
        {one.format: _Said(resources.size_text(one.size), one.sha256, one.size) for one in said.artifacts}
        for said in (before, after)
    ]
    head = _changes({"version": _Said(before.version, "", 0)}, {"version": _Said(after.version, "", 0)})
    return _without_empty(
        [Section(title="Appliance", changes=head), Section(title="Artifacts", changes=_changes(*sizes))]
    )


def of_files(before: Mapping[str, str], after: Mapping[str, str]) -> Section:
    """What differs between the files of two machines, as `trees.listing` has them."""
    changes = [
        Change(name=path, before=_word(before.get(path)), after=_word(after.get(path)))
        for path in sorted({*before, *after})
        if before.get(path) != after.get(path)
    ]
    return Section(title="Files", changes=tuple(changes))


def text(sections: Sequence[Section], *, markdown: bool = False) -> str:
    """The changelog, for a terminal or as Markdown; one line where nothing changed."""
    if not sections:
        return "nothing changed\n"
    lines: list[str] = []
    for section in sections:
        total = sum(change.size for change in section.changes)
        grown = f" ({_signed(total)})" if total else ""
        lines += [
            f"## {section.title}{grown}" if markdown else f"{section.title}{grown}",
            *([""] if markdown else []),
        ]
        for change in section.changes[:_SHOWN]:
            line = _line(change, code=markdown)
            lines.append(f"- {line}" if markdown else f"  {line}")
        if len(section.changes) > _SHOWN:
            lines.append(f"{'- ' if markdown else '  '}and {len(section.changes) - _SHOWN} more")
        lines.append("")
    return "\n".join(lines)


def as_dict(sections: Sequence[Section]) -> list[dict[str, Any]]:
    """The same for programs."""
    return [
        {"part": section.title, "changes": [{"kind": one.kind, **vars(one)} for one in section.changes]}
        for section in sections
    ]


def _parts(lock: Lock) -> Iterator[tuple[str, dict[str, _Said]]]:
    if lock.debian is not None:
        yield (
            "System",
            {one.name: _Said(one.version, one.sha256, one.size) for one in lock.debian.every},
        )
    if lock.image is not None:
        yield "System", {"base image": _Said(lock.image.sha256[:12], lock.image.sha256, 0)}
    for name, section in lock.conda.environments.items():
        yield (
            f"Environment {name}",
            {one.name: _Said(f"{one.version} {one.build}", one.sha256, one.size) for one in section.packages},
        )
        yield (
            f"Environment {name}: PyPI",
            {one.name: _Said(one.version, one.sha256, one.size) for one in section.wheels or ()},
        )
    yield (
        "Programs",
        {
            name: _Said((one.commit or one.sha256)[:12], one.sha256, one.size)
            for name, one in (lock.programs or {}).items()
        },
    )


def _changes(before: Mapping[str, _Said], after: Mapping[str, _Said]) -> tuple[Change, ...]:
    """Added, removed and updated, by name; the same version of other bytes is an update too."""
    found = []
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if old == new:
            continue
        same = old is not None and new is not None and old.version == new.version
        found.append(
            Change(
                name=name,
                before=f"{old.version}{' ' + old.digest[:12] if same else ''}" if old else "",
                after=f"{new.version}{' ' + new.digest[:12] if same else ''}" if new else "",
                size=(new.size if new else 0) - (old.size if old else 0),
            )
        )
    return tuple(found)


def _without_empty(sections: Any) -> list[Section]:
    return [one for one in sections if one.changes]


def _word(about: str | None) -> str:
    return about or ""


def _line(change: Change, *, code: bool) -> str:
    name = f"`{change.name}`" if code else change.name
    grown = f"  {_signed(change.size)}" if change.size else ""
    if change.kind == "updated":
        return f"{name} {change.before} → {change.after}{grown}"
    return f"{name} {change.after or change.before} {change.kind}{grown}"


def _signed(count: int) -> str:
    return f"{'+' if count >= 0 else '-'}{resources.size_text(abs(count))}"
