"""What a machine should hold, path by path: the list that ``appliance-verify`` on it compares its files with.

A line is one of::

    environment PATH         a conda environment: what stands in it and in no line is extra
    ignore PATH              this, and all below it, is not looked at (a nearer `environment` is)
    any PATH                 this may be there or not, as it likes
    PATH//file MODE UID:GID SHA-256
    PATH//link UID:GID TARGET
    PATH//folder MODE UID:GID        or without mode and owner: a folder, whatever they are

sorted, after a comment and before the line ``# end``. In a path or target a newline is written as \\x01 and a tab as
\\x02; two slashes end a path, for no path has them. ``playbooks/roles/verify/files/appliance-verify`` reads it.
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from conda_appliance import resources, trees
from conda_appliance.definition import ImageDefinition
from conda_appliance.errors import UsageError
from conda_appliance.layer import Layer

#: Where it stands on the machine, as a path from its root.
PLACE = "etc/conda-appliance/inventory"

#: What an image adds to an environment, and what conda and people keep in one, by its own path.
_ADDED = (".condarc", "conda-meta/frozen", "conda-meta/history")
#: What names the build, where the environments have a partition of their own.
_STAMP = (
    "etc",
    "etc/conda-appliance",
    *(
        f"etc/conda-appliance/{name}"
        for name in ("appliance.json", "appliance.lock", "sbom.cdx.json", "inventory")
    ),
)
#: Where an environment's owner has environments and packages of their own.
_OWNERS = ("envs", "pkgs")


def text(image: ImageDefinition, linked: Layer, files: Path) -> str:
    """The list for a machine with the environments ``linked`` and the definition's files as they lie in ``files``.

    Raises UsageError for a name that is not UTF-8.
    """
    prefixes = [image.prefix_of(name) for name in image.conda.environments]
    lines: dict[str, str] = {}
    said: list[str] = []
    for prefix in prefixes:
        said.append(f"environment {prefix}")
        said += [f"ignore {prefix}/{name}" for name in _OWNERS]
        added = (*_ADDED, *_STAMP) if image.disk.layout == "split" else _ADDED
        said += [f"any {prefix}/{name}" for name in added if not (linked.path / prefix[1:] / name).is_dir()]
        said += [f"any {path}/EXTERNALLY-MANAGED" for path in _stdlibs(linked.path, prefix)]
        lines.update(_environment(linked, prefix, tuple(prefixes)))
    for path, about in _files(files, prefixes):
        if about != "folder" or path not in lines:
            lines[path] = about
    ignored = image.verify.ignore
    said += [f"ignore {path}" for path in ignored]
    below = tuple(f"{one}/" for one in ignored)
    kept = {path: about for path, about in lines.items() if not f"{path}/".startswith(below)}
    above = [one for one in said if not _below(one, ignored)]
    return "".join(
        [
            f"# appliance {image.name} {image.version}\n",
            "# What was built, path by path; to compare: appliance-verify\n",
            *(f"{line}\n" for line in sorted(set(above))),
            *(f"{_line(path)}//{_line(about)}\n" for path, about in sorted(kept.items())),
            "# end\n",
        ]
    )


def _below(said: str, ignored: tuple[str, ...]) -> bool:
    """Whether a line is about an environment that the definition wants ignored."""
    word, _, path = said.partition(" ")
    return word == "environment" and any(f"{path}/".startswith(f"{one}/") for one in ignored)


def _stdlibs(root: Path, prefix: str) -> Iterator[str]:
    for path in sorted((root / prefix[1:]).glob("lib/python3*")):
        yield f"{prefix}/lib/{path.name}"


@functools.cache  # machines of one run that have the same environments, and other applications
def _environment(linked: Layer, prefix: str, prefixes: tuple[str, ...]) -> Mapping[str, str]:
    """Every path of one environment; those of others inside it are theirs."""
    inside = prefix[1:]
    others = tuple(f"{one[1:]}/" for one in prefixes if one.startswith(f"{prefix}/"))
    found = {}
    for path, about in linked.listing().items():
        if not path.startswith(f"{inside}/") or path.startswith(others):
            continue
        place = f"{linked.path}/{path}"
        kind, mode = about.split(" ", 2)[:2]
        # An installer's settings, too: the machine's replace them.
        if path.removeprefix(f"{inside}/") in _ADDED:
            continue
        # All of it is root's on the machine, whoever linked it here.
        if kind == "link":
            found[f"/{path}"] = f"link 0:0 {_target(place)}"
        elif kind == "file":
            digest = about.partition(" sha256:")[2][:64] or resources.sha256_of(Path(place))
            found[f"/{path}"] = f"file {int(mode, 8):o} 0:0 {digest}"
        elif kind == "folder":
            found[f"/{path}"] = f"folder {int(mode, 8):o} 0:0"
    return found


def _files(files: Path, prefixes: list[str]) -> Iterator[tuple[str, str]]:
    """The definition's own files. Folders keep the modes that they have on the machine."""
    for path, about in trees.walk(files):
        place = files / path
        if stat.S_ISLNK(about.st_mode):
            yield f"/{path}", f"link 0:0 {_target(place)}"
        elif stat.S_ISREG(about.st_mode):
            yield (
                f"/{path}",
                f"file {stat.S_IMODE(about.st_mode):o} 0:0 {resources.sha256_of(place)}",
            )
        elif any(PurePosixPath(f"/{path}").is_relative_to(prefix) for prefix in prefixes):
            yield f"/{path}", "folder"


def _target(link: str | Path) -> str:
    return os.readlink(link)  # noqa: PTH115 (pathlib would tidy ./ and // away)


def _line(text: str) -> str:
    """A path or target as it stands in a line."""
    if text.isascii() and text.isprintable():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"the name {text!r} is not UTF-8, and cannot be listed for appliance-verify",
            hint="give the file another name",
        ) from None
    return text.replace("\n", "\x01").replace("\t", "\x02")
