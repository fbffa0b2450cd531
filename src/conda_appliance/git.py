"""A git repository at a commit → its files as one tar: by the host's git, whose credential helpers it uses."""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

from conda_appliance import network, process, resources
from conda_appliance.errors import BuildError, CommandFailed, UsageError

#: The time of every file in the tar: 2020-01-01, in seconds since 1970.
EPOCH = 1577836800
#: How a file begins that git-lfs keeps elsewhere (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md).
_POINTER = b"version https://git-lfs.github.com/spec/"


def export(
    url: str, commit: str, to: Path, *, cache: Path, progress: Callable[[str], None] = lambda _text: None
) -> None:
    """Write the files of ``commit`` (a full hash) in the repository at ``url`` to the tar ``to``.

    What was fetched is kept below ``cache``. The tar has the files in order, as root's, all of one time, with the modes
    0755 and 0644: the same commit gives the same bytes, whatever git's version. ``export-ignore`` is honoured as by
    ``git archive``. Raises UsageError for what a tar of one repository cannot hold (submodules, files in LFS),
    BuildError when the repository or the commit cannot be had.
    """
    process.require("git")
    home = cache / "git"
    with resources.work_folder(home, f".{hashlib.sha256(url.encode()).hexdigest()[:16]}", wait=progress):
        repository = home / hashlib.sha256(url.encode()).hexdigest()[:16]
        if not (repository / "HEAD").is_file():
            _git("init", "--quiet", "--bare", repository)
        if not _has(repository, commit):
            progress(f"fetching {commit[:12]} of {url}")
            _fetch(repository, url, commit)
        _refuse_others(repository, url, commit)
        raw = to.with_name(f"{to.name}.raw")
        try:
            _git("-C", repository, "archive", "--format=tar", f"--output={raw}", commit)
            _normalise(raw, to, url)
        finally:
            raw.unlink(missing_ok=True)


def _git(*words: process.Argument) -> str:
    # ext:: and the like run programs that a URL names. Nobody is there to be asked for a password.
    argv: list[process.Argument] = ["git", "-c", "protocol.ext.allow=never", *words]
    env = {**network.variables(), "GIT_TERMINAL_PROMPT": "0"}
    return process.run(argv, env=env, network="fetch" in words).stdout


def _has(repository: Path, commit: str) -> bool:
    try:
        return _git("-C", repository, "cat-file", "-t", commit).strip() == "commit"
    except CommandFailed:
        return False


def _fetch(repository: Path, url: str, commit: str) -> None:
    fetch = ("-C", repository, "fetch", "--quiet", "--no-tags")
    where = ("--end-of-options", url)
    try:
        # Most servers give one commit that is asked for; the others are asked for all they show.
        try:
            _git(*fetch, "--depth=1", *where, commit)
        except CommandFailed:
            _git(*fetch, *where, "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
    except CommandFailed as error:
        said = error.output.strip().splitlines()
        raise BuildError(
            f"git cannot fetch from {url}: {said[-1] if said else error.message}",
            hint=f"try it by hand: git ls-remote {url}",
        ) from None
    if not _has(repository, commit):
        raise BuildError(
            f"{url} has no commit {commit}", hint=f"the commits of its branches and tags: git ls-remote {url}"
        )


def _refuse_others(repository: Path, url: str, commit: str) -> None:
    listed = _git("-C", repository, "ls-tree", "-r", "-z", commit).split("\0")
    modules = [line.partition("\t")[2] for line in listed if line.startswith("160000 ")]
    if modules:
        raise UsageError(
            f"{url} has submodules, which are repositories of their own: {', '.join(modules)}",
            hint="ship it as a wheel or as `files`, or name the repositories as services of their own",
        )


def _normalise(raw: Path, to: Path, url: str) -> None:
    with (
        tarfile.open(raw) as given,
        tarfile.open(to, "w", format=tarfile.GNU_FORMAT) as made,
    ):
        for member in sorted(given.getmembers(), key=lambda one: one.name):
            if not (member.isfile() or member.isdir() or member.issym()):
                raise UsageError(f"{url} holds {member.name}, which is neither a file nor a link")
            if member.issym() and re.match(r"/|(.*/)?\.\.(/|$)", member.linkname):
                top = Path(member.name).parent / member.linkname
                if member.linkname.startswith("/") or ".." in _resolved(top):
                    raise UsageError(
                        f"{url}: the link {member.name} leads out of the repository: {member.linkname}"
                    )
            file = given.extractfile(member) if member.isfile() else None
            if file is not None and file.peek(len(_POINTER)).startswith(_POINTER):  # type: ignore[attr-defined]
                raise UsageError(
                    f"{url}: {member.name} is kept in git-lfs, of which the repository has only a pointer",
                    hint="ship it as `files` of the definition",
                )
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.uid = member.gid = 0
            member.uname = member.gname = "root"
            member.mtime = EPOCH
            member.pax_headers = {}
            made.addfile(member, file)


def _resolved(path: Path) -> tuple[str, ...]:
    """The parts of a relative path with its ``..`` taken back, as far as they can be."""
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        else:
            parts.append(part)
    return tuple(parts)
