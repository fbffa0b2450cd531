"""What decides a Debian root file system: whatever makes it another one makes another layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from conda_appliance import bootstrap, layers
from conda_appliance.definition import Base
from conda_appliance.definition_slim import Part
from conda_appliance.lock import DebianSection

SECTION = DebianSection(suite="trixie", glibc="2.41", packages=())


class Asked:
    """A store that only says by what it was asked for a layer."""

    def get(self, kind: str, parts: layers.Parts, _make: object, **_: Any) -> str:
        return layers.key_of(kind, parts)


def key(section: DebianSection = SECTION, *, without: Sequence[Part] = (), **base: Any) -> str:
    asked: Any = Asked()
    given = Base.model_validate({"debian": "trixie"} | base)
    return str(bootstrap.system(section, given, {}, store=asked, progress=lambda _: None, without=without))


@pytest.mark.parametrize(
    "base",
    [{"mirror": "http://mirror.example/debian"}, {"packages": ["netcat-openbsd"]}],
    ids=["a mirror is written into it", "apt remembers which packages were asked for"],
)
def test_what_is_asked_for_decides_it_though_the_packages_are_the_same(base: dict[str, Any]) -> None:
    assert key(**base) != key()


def test_another_suite_is_another_system() -> None:
    assert key(SECTION.model_copy(update={"suite": "forky"})) != key()


def test_what_slim_leaves_out_of_it_decides_it_and_what_is_of_environments_alone_does_not() -> None:
    assert (
        len({key(), key(without=["docs"]), key(without=["locales"]), key(without=["docs", "locales"])}) == 4
    )
    assert key(without=["headers", "tests"]) == key()


def test_the_same_is_the_same() -> None:
    assert key() == key()
