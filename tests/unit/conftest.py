"""Unit tests reach neither the network nor another program: both raise here."""

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.layers_made import Runs

from conda_appliance.layers import Store


@pytest.fixture(autouse=True)
def _nothing_outside(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    def no_network(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("a unit test tried to reach the network")

    def no_program(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("a unit test tried to start a program")

    if "allow_loopback" not in request.keywords:
        monkeypatch.setattr(socket.socket, "connect", no_network)
    if "allow_programs" not in request.keywords:
        monkeypatch.setattr(subprocess, "Popen", no_program)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Runs(tmp_path / "layers")
    yield made
    made.release()


@pytest.fixture
def one_run(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "layers")
    yield made
    made.release()
