"""A suite's signed index → packages and sources by URL and SHA-256, resolved by apt itself.

apt runs with a state folder of its own and an empty dpkg status: what it resolves is the whole machine, and the
host's packages play no part. Of the host's settings only those count that say how to reach a mirror: its URL,
proxies, certificates and credentials. The chain of trust is apt's: InRelease is verified with Debian's archive
keyring, and each hash comes from an index that InRelease names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from conda_appliance import log, network, process
from conda_appliance.errors import BuildError, CommandFailed, ToolMissing, UsageError

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
DEFAULT_MIRROR = "http://deb.debian.org/debian"
DEFAULT_SECURITY = "http://deb.debian.org/debian-security"

#: The host's apt settings that say how to reach a mirror, and how old an index may be.
_REACHING = re.compile(r"Acquire::(https?::|ForceIPv[46] |Check-Valid-Until |Check-Date |Max-ValidTime)")
#: What apt says when a mirror has no such suite, as opposed to not answering.
_NO_SUITE = re.compile(r"The repository '\S+ (\S+) (?:In)?Release' does not have a Release file")
#: A line of an index of sources in the one-line format: type, options, URI, suite, components.
_ONE_LINE = re.compile(r"^\s*deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)\s+([^#]+)")

#: What apt says of each step of a simulation: a package, the version there is, the version to come.
_INSTALLS = re.compile(r"^Inst (\S+) (?:\[\S+\] )?\((\S+) ")
_REMOVES = re.compile(r"^Remv (\S+) ")

_URI = re.compile(r"^'(?P<url>[^']+)' (?P<file>\S+) (?P<size>\d+) SHA256:(?P<sha256>[0-9a-f]{64})$")


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file of the archive: ``name`` as apt would store it (``NAME_VERSION_ARCH.deb``), ``size`` in bytes."""

    name: str
    url: str
    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Steps:
    """What apt would do to a machine: packages that come or change, with their new versions, and those that go."""

    installed: dict[str, str]
    removed: tuple[str, ...]


class Apt:
    """apt for one suite, in a folder of its own."""

    def __init__(
        self,
        suite: str,
        *,
        state: Path,
        mirror: str | None = None,
        sources: bool = False,
        architecture: str = "amd64",
    ) -> None:
        """Prepare ``state``. ``mirror``: an archive's base URL; without it the host's own for Debian.

        The suite's updates and security updates are always asked for; a named mirror may lack them, which is
        then said. ``sources``: whether source packages are asked for too. Raises ToolMissing without Debian's
        keyring.
        """
        if not KEYRING.exists():
            raise ToolMissing(
                f"{KEYRING} is not there, and Debian's packages are verified with it",
                hint="apt-get install debian-archive-keyring",
            )
        self.suite = suite
        self.state = state
        self._architecture = architecture
        main, security = (mirror, security_of(mirror)) if mirror else host_mirrors()
        self._may_lack = {f"{suite}-updates", f"{suite}-security"} if mirror else set()
        self._types = "deb deb-src" if sources else "deb"
        self._places = {suite: main, f"{suite}-updates": main, f"{suite}-security": security}
        for folder in ("lists/partial", "cache/archives/partial", "etc/parts", "etc/trusted", "log"):
            (state / folder).mkdir(parents=True, exist_ok=True)
        (state / "status").touch()
        self._config = state / "apt.conf"
        self._config.write_text(
            _CONFIG.format(state=state, architecture=architecture) + _host_settings(), encoding="utf-8"
        )
        self._write_sources()

    def _write_sources(self) -> None:
        stanzas = [
            f"Types: {self._types}\nURIs: {url}\nSuites: {suite}\nComponents: main\n"
            f"Architectures: {self._architecture}\nSigned-By: {KEYRING}\n"
            for suite, url in self._places.items()
        ]
        (self.state / "etc/debian.sources").write_text("\n".join(stanzas), encoding="utf-8")

    def update(self) -> None:
        """Fetch and verify the suite's index. Raises BuildError when the mirror cannot be reached or trusted."""
        try:
            self._run("update", "-q", "--error-on=any")
        except CommandFailed as error:
            lacking = set(_NO_SUITE.findall(error.output)) & self._may_lack & self._places.keys()
            if lacking:
                for suite in sorted(lacking):
                    log.warn(f"{self._places.pop(suite)} has no {suite}: its packages are left out")
                self._write_sources()
                return self.update()
            raise self._unreadable(error.output or error.message) from None

    def _unreadable(self, output: str) -> BuildError:
        lines = [line for line in output.splitlines() if line.startswith(("E:", "W:", "Err:"))]
        hint = "check the network, or name another mirror with base.mirror"
        if "NO_PUBKEY" in output:
            hint = f"{KEYRING} is older than {self.suite}: install a newer debian-archive-keyring"
        return BuildError(
            f"apt cannot read Debian {self.suite}'s index: " + ("\n".join(lines) or output), hint=hint
        )

    def resolve(self, packages: Iterable[str]) -> list[RemoteFile]:
        """All that an empty machine needs for Essential packages and ``packages``, without recommendations.

        Raises UsageError with apt's words when a package does not exist or cannot be installed.
        """
        return self._uris(
            "install", "--yes", "--no-install-recommends", "--print-uris", "?essential", *packages
        )

    def has(self, index: str, *, wanted: Iterable[str]) -> None:
        """Tell apt that the machine has the packages of ``index`` (the text of a Packages file).

        Those that are not in ``wanted`` are there because others need them.
        """
        names = re.findall(r"^Package: (\S+)$", index, re.MULTILINE)
        status = re.sub(r"^(Package: \S+)$", "\\1\nStatus: install ok installed", index, flags=re.MULTILINE)
        (self.state / "status").write_text(status, encoding="utf-8")
        needed = sorted({*names} - {*wanted})
        (self.state / "extended_states").write_text(
            "\n".join(
                f"Package: {name}\nArchitecture: {self._architecture}\nAuto-Installed: 1\n" for name in needed
            ),
            encoding="utf-8",
        )

    def steps(self, packages: Iterable[str], *, unneeded: bool = False) -> Steps:
        """What it takes to have the newest ``packages`` on the machine; with ``unneeded``, what nobody needs then goes.

        Raises UsageError with apt's words when they cannot be installed.
        """
        lines = self._asked(
            *("install", "--simulate", "--no-install-recommends", *(["--auto-remove"] if unneeded else [])),
            *packages,
        ).splitlines()
        return Steps(
            installed={match[1]: match[2] for match in map(_INSTALLS.match, lines) if match},
            removed=tuple(match[1] for match in map(_REMOVES.match, lines) if match),
        )

    def moving(self, packages: Iterable[str]) -> list[RemoteFile]:
        """The files that the machine does not have yet and needs for the newest ``packages``."""
        return self._uris("install", "--yes", "--no-install-recommends", "--print-uris", *packages)

    def download_only(self, packages: Iterable[str]) -> list[RemoteFile]:
        """The named packages themselves, without what they depend on; the newest of each, in no order."""
        return self._uris("download", "--print-uris", *packages)

    def source(self, package: str) -> list[RemoteFile]:
        """The files of a source package: its ``.dsc``, its original tarball, Debian's changes."""
        return self._uris("source", "--print-uris", package)

    def _uris(self, *words: str) -> list[RemoteFile]:
        return [_remote_file(line) for line in self._asked(*words).splitlines() if line.startswith("'")]

    def _asked(self, *words: str) -> str:
        try:
            return self._run("-q", *words).stdout
        except CommandFailed as error:
            lines = [line for line in error.output.splitlines() if line.startswith(("E:", " "))]
            raise UsageError(
                f"apt cannot resolve this from Debian {self.suite}:\n" + ("\n".join(lines) or error.message),
                hint=f"is each a package of {self.suite}? apt's words above name those it does not know",
            ) from None

    def _run(self, *words: str) -> process.Completed:
        return process.run(["apt-get", *words], env={"APT_CONFIG": str(self._config)}, network=True)


def _remote_file(line: str) -> RemoteFile:
    """``'URL' FILE SIZE SHA256:HASH``, as apt prints what it would download."""
    match = _URI.match(line)
    if match is None:
        raise BuildError(f"apt names no SHA-256 in: {line}", hint="is the mirror a Debian archive?")
    return RemoteFile(
        name=match["file"], url=unquote(match["url"]), sha256=match["sha256"], size=int(match["size"])
    )


_CONFIG = """\
Dir "{state}";
Dir::State "{state}";
Dir::State::status "{state}/status";
Dir::State::lists "{state}/lists";
Dir::Cache "{state}/cache";
Dir::Log "{state}/log";
Dir::Etc::main "{state}/none";
Dir::Etc::parts "{state}/etc/parts";
Dir::Etc::preferences "{state}/none";
Dir::Etc::preferencesparts "{state}/etc/parts";
Dir::Etc::sourcelist "{state}/etc/debian.sources";
Dir::Etc::sourceparts "{state}/etc/parts";
Dir::Etc::trusted "{state}/none";
Dir::Etc::trustedparts "{state}/etc/trusted";
Dir::Etc::netrc "/etc/apt/auth.conf";
Dir::Etc::netrcparts "/etc/apt/auth.conf.d";
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Sandbox::User "root";
APT::Get::List-Cleanup "true";
APT::Protect-Kernels "false";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::ForceHash "SHA256";
"""


def _host_settings() -> str:
    """The host's own, after the certificates that everything else here trusts: its own go before those."""
    found = network.certificates()
    trusted = f'Acquire::https::CAInfo "{found}";\n' if found is not None else ""
    dumped = process.run(["apt-config", "dump", "Acquire"]).stdout
    return trusted + "".join(f"{line}\n" for line in dumped.splitlines() if _REACHING.match(line))


def host_mirrors() -> tuple[str, str]:
    """The host's own mirrors of Debian and of its security updates, where it has some; else deb.debian.org."""
    folder = Path("/etc/apt")
    entries: list[tuple[str, str]] = []
    for path in sorted(folder.glob("sources.list.d/*.sources")):
        entries += deb822_entries(path.read_text(encoding="utf-8", errors="replace"))
    for path in (folder / "sources.list", *sorted(folder.glob("sources.list.d/*.list"))):
        if path.exists():
            entries += one_line_entries(path.read_text(encoding="utf-8", errors="replace"))
    return choose_mirrors(entries)


def choose_mirrors(entries: Iterable[tuple[str, str]]) -> tuple[str, str]:
    """The first URI of Debian's main archive and of its security archive among ``(URI, suite)``.

    Other vendors name suites after Debian's, and their paths too: those that pass for Debian's by both would
    still fail at the keyring.
    """
    main, security = "", ""
    for uri, suite in entries:
        if not re.match(r"(https?|file|copy):", uri):
            continue
        url = uri.rstrip("/")
        if re.search(r"/debian-security(/\d{8}T\d{6}Z)?$", url) and suite.endswith("-security"):
            security = security or url
        elif re.search(r"/debian(/\d{8}T\d{6}Z)?$", url) and re.fullmatch(r"[a-z]+", suite):
            main = main or url
    return main or DEFAULT_MIRROR, security or DEFAULT_SECURITY


def one_line_entries(text: str) -> Iterator[tuple[str, str]]:
    """``(URI, suite)`` of each ``deb`` line that has the component ``main``: sources.list(5), the old format."""
    for match in filter(None, map(_ONE_LINE.match, text.splitlines())):
        if "main" in match[3].split():
            yield match[1], match[2]


def deb822_entries(text: str) -> Iterator[tuple[str, str]]:
    """``(URI, suite)`` of each enabled stanza of type ``deb`` that has the component ``main``."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for stanza in re.split(r"\n\s*\n", "\n".join(lines)):
        fields = {
            name.lower(): value.split()
            for name, value in re.findall(r"^([A-Za-z-]+):((?:.*)(?:\n[ \t].*)*)", stanza, re.MULTILINE)
        }
        enabled = fields.get("enabled", ["yes"]) != ["no"]
        if enabled and "deb" in fields.get("types", []) and "main" in fields.get("components", []):
            for uri in fields.get("uris", []):
                for suite in fields.get("suites", []):
                    yield uri, suite


def security_of(mirror: str) -> str:
    """Where a mirror has the security archive by custom: beside ``debian``, in ``debian-security``."""
    match = re.fullmatch(r"(.*[^/])/debian((?:/.*)?)", mirror.rstrip("/"))
    return f"{match[1]}/debian-security{match[2]}" if match else f"{mirror.rstrip('/')}-security"
