"""Which mirrors of Debian a host uses, read from apt's own files in both of their formats."""

import pytest

from conda_appliance import apt
from conda_appliance.errors import BuildError

DEB822 = """\
Types: deb deb-src
# a comment inside
URIs: https://mirror.example/debian/
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: https://mirror.example/debian-security
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: https://disabled.example/debian
Suites: bookworm
Components: main
"""

ONE_LINE = """\
# deb http://commented.example/debian bookworm main
deb-src http://source.example/debian bookworm main
deb [arch=amd64 signed-by=/etc/apt/keyrings/docker.asc] https://download.docker.com/linux/debian bookworm stable
deb http://ftp.example/debian bookworm main non-free-firmware # the nearest
deb http://security.example/debian-security/ bookworm-security main
"""


def test_deb822_stanzas_give_a_uri_and_a_suite_each() -> None:
    assert list(apt.deb822_entries(DEB822)) == [
        ("https://mirror.example/debian/", "bookworm"),
        ("https://mirror.example/debian/", "bookworm-updates"),
        ("https://mirror.example/debian-security", "bookworm-security"),
    ]


def test_one_line_entries_leave_out_comments_sources_and_other_vendors() -> None:
    assert list(apt.one_line_entries(ONE_LINE)) == [
        ("http://ftp.example/debian", "bookworm"),
        ("http://security.example/debian-security/", "bookworm-security"),
    ]


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([], (apt.DEFAULT_MIRROR, apt.DEFAULT_SECURITY)),
        (
            list(apt.deb822_entries(DEB822)),
            ("https://mirror.example/debian", "https://mirror.example/debian-security"),
        ),
        ([("https://deb.nodesource.com/node_20.x", "nodistro")], (apt.DEFAULT_MIRROR, apt.DEFAULT_SECURITY)),
        (
            [("https://packages.example/cloud/debian", "tool-bookworm")],
            (apt.DEFAULT_MIRROR, apt.DEFAULT_SECURITY),
        ),
        (
            [("mirror+file:///etc/apt/mirrors/debian.list", "bookworm")],
            (apt.DEFAULT_MIRROR, apt.DEFAULT_SECURITY),
        ),
        ([("cdrom:[Debian GNU/Linux 12]/debian", "bookworm")], (apt.DEFAULT_MIRROR, apt.DEFAULT_SECURITY)),
        (
            [("http://snapshot.debian.org/archive/debian/20260101T000000Z", "trixie")],
            ("http://snapshot.debian.org/archive/debian/20260101T000000Z", apt.DEFAULT_SECURITY),
        ),
    ],
)
def test_only_debians_own_archives_are_taken(
    entries: list[tuple[str, str]], expected: tuple[str, str]
) -> None:
    assert apt.choose_mirrors(entries) == expected


@pytest.mark.parametrize(
    ("mirror", "security"),
    [
        ("http://deb.debian.org/debian", "http://deb.debian.org/debian-security"),
        ("http://debian.example/debian/", "http://debian.example/debian-security"),
        ("file:///srv/mirror/debian", "file:///srv/mirror/debian-security"),
        (
            "http://snapshot.example/archive/debian/2026",
            "http://snapshot.example/archive/debian-security/2026",
        ),
        ("http://debian.example/trixie", "http://debian.example/trixie-security"),
    ],
)
def test_a_mirrors_security_archive_stands_beside_it(mirror: str, security: str) -> None:
    assert apt.security_of(mirror) == security


def test_a_line_without_a_sha256_is_refused() -> None:
    with pytest.raises(BuildError, match="no SHA-256"):
        apt._remote_file("'http://x/pool/a_1_all.deb' a_1_all.deb 12 MD5Sum:8c82dcf89447f04e600379a1a1871f3b")
