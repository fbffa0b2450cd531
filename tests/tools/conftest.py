"""What takes a minute to make is made once for all tests."""

from __future__ import annotations

import debian_made as making
import pytest
from debian_made import Debian


@pytest.fixture(scope="session")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Debian:
    """A Debian that was resolved and made for real."""
    return making.debian(tmp_path_factory.mktemp("debian"))
