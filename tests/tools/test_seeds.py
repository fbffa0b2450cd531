"""One command makes a seed disc for each machine of a batch, all or none, with the same bytes each time."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from conda_appliance import cli, disc, process

ROOT = Path(__file__).resolve().parents[2]
BATCH = "hostname,keys,address,PLANT\nplant-1,ssh-ed25519 AAAAC3Nz me,,north\nplant-2,,10.0.0.2/24,south\n"


def seeds(tmp_path: Path, batch: str, to: str) -> int:
    (tmp_path / "plants.csv").write_text(batch)
    words = ["disc", str(ROOT / "images/hello.yaml"), "seed", str(tmp_path / "plants.csv")]
    return cli.main([*words, "--to", str(tmp_path / to)])


def read(image: Path, to: Path) -> dict[str, str]:
    process.run(["xorriso", "-osirrox", "on", "-indev", f"stdio:{image}", "-extract", "/", to])
    return {path.name: path.read_text() for path in to.iterdir()}


def test_each_machine_has_a_disc_that_cloud_init_looks_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert seeds(tmp_path, BATCH, "seeds") == 0
    made = [tmp_path / "seeds/seed-plant-1.iso", tmp_path / "seeds/seed-plant-2.iso"]
    said = capsys.readouterr()
    assert said.out.split() == [str(path) for path in made]
    assert "plant-2: neither it nor" in said.err and "nobody will be able to log in" in said.err
    assert sorted((tmp_path / "seeds").iterdir()) == made
    assert disc.contents(made[0]).volume == "cidata"
    first, second = read(made[0], tmp_path / "1"), read(made[1], tmp_path / "2")
    user = yaml.safe_load(first["user-data"])
    assert (user["hostname"], user["ssh_authorized_keys"]) == ("plant-1", ["ssh-ed25519 AAAAC3Nz me"])
    assert user["write_files"][0]["content"] == 'PLANT="north"\n'
    assert user["runcmd"] == [["systemctl", "--no-block", "try-restart", "hello.service"]]
    assert "network-config" not in first
    assert yaml.safe_load(second["network-config"])["ethernets"]["e*"]["addresses"] == ["10.0.0.2/24"]


def test_the_same_batch_gives_the_same_bytes_and_a_changed_machine_a_new_instance(tmp_path: Path) -> None:
    for to, batch in (("one", BATCH), ("two", BATCH), ("three", BATCH.replace("south", "west"))):
        assert seeds(tmp_path, batch, to) == 0
    bytes_of = {
        to: [(tmp_path / to / f"seed-plant-{number}.iso").read_bytes() for number in (1, 2)]
        for to in ("one", "two", "three")
    }
    assert bytes_of["one"] == bytes_of["two"]
    assert bytes_of["three"][0] == bytes_of["one"][0]
    ids = [
        read(tmp_path / to / "seed-plant-2.iso", tmp_path / f"read-{to}")["meta-data"]
        for to in ("one", "three")
    ]
    assert ids[0] != ids[1]


def test_nothing_is_written_when_anything_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert seeds(tmp_path, BATCH.replace("10.0.0.2/24", "10.0.0.2"), "seeds") == 2
    assert (
        "plants.csv:3:3: machines[1].network.address: '10.0.0.2' is not an address" in capsys.readouterr().err
    )
    assert not (tmp_path / "seeds").exists()
