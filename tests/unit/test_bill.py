"""Which licences a Debian copyright file names."""

from __future__ import annotations

import pytest

from conda_appliance import bill

DEP5 = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\nLicense: {}\n Text.\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (DEP5.format("Expat"), ["MIT"]),
        (DEP5.format("GPL-2+ or Artistic"), ["Artistic-1.0-Perl", "GPL-2.0-or-later"]),
        (
            DEP5.format("GPL-3+ and LGPL-2.1, BSD-3-clause"),
            ["BSD-3-Clause", "GPL-3.0-or-later", "LGPL-2.1-only"],
        ),
        (DEP5.format("Apache-2.0"), ["Apache-2.0"]),
        (DEP5.format("Our-Own"), ["Our-Own"]),
        ("It is free; see /usr/share/common-licenses/GPL-2.\n", ["GPL-2.0-only"]),
        ("Public domain.\n", []),
        ("", []),
    ],
)
def test_licences_have_their_spdx_names_where_they_have_one(text: str, expected: list[str]) -> None:
    assert bill.licences_of_copyright(text) == expected
