"""A batch of machines is read from YAML or CSV, and every mistake of it is told at once with its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from conda_appliance import machines, render
from conda_appliance.errors import DefinitionError
from conda_appliance.machines import Network

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGZq"
YAML = f"""
keys: [{KEY} all]
settings: {{PLANT: north, LEVEL: "1"}}
machines:
  - hostname: plant-1
  - hostname: plant-2
    keys: [{KEY} two]
    network: {{address: 192.168.7.10/24, gateway: 192.168.7.1, dns: [192.168.7.1, 9.9.9.9]}}
    settings: {{LEVEL: "2"}}
"""
CSV = f"""hostname,keys,address,gateway,dns,PLANT,LEVEL
plant-1,{KEY} all,,,,north,1
plant-2,{KEY} all;{KEY} two,192.168.7.10/24,192.168.7.1,192.168.7.1;9.9.9.9,north,2
"""


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def problems(path: Path) -> list[str]:
    with pytest.raises(DefinitionError) as caught:
        machines.load(path)
    return [str(problem).removeprefix(f"{path}:") for problem in caught.value.problems]


def test_yaml_and_csv_say_the_same(tmp_path: Path) -> None:
    found = machines.load(written(tmp_path, "plants.yaml", YAML))
    assert found == machines.load(written(tmp_path, "plants.csv", CSV))
    first, second = found
    assert (first.hostname, first.network, first.settings) == (
        "plant-1",
        None,
        {"PLANT": "north", "LEVEL": "1"},
    )
    assert second.keys == (f"{KEY} all", f"{KEY} two")
    assert second.settings == {"PLANT": "north", "LEVEL": "2"}
    assert second.network == Network(
        address="192.168.7.10/24", gateway="192.168.7.1", dns=("192.168.7.1", "9.9.9.9")
    )


def test_every_mistake_of_a_csv_is_told_by_line_and_column(tmp_path: Path) -> None:
    text = "hostname,address,gateway,mac\nUPPER,192.168.7.300/24,,\nok,10.0.0.2/24,10.0.1.1,\nlast,10.0.0.3/24,,nope\n"
    told = problems(written(tmp_path, "bad.csv", text))
    assert [line.split(" ")[0] for line in told] == ["2:1:", "2:2:", "3:2:", "4:4:"]
    assert "'UPPER' is not a host name" in told[0] and "192.168.7.300/24" in told[1]
    assert "the gateway 10.0.1.1 is not in the network 10.0.0.0/24" in told[2]


def test_every_mistake_of_a_yaml_file_is_told_by_line(tmp_path: Path) -> None:
    told = problems(
        written(
            tmp_path,
            "bad.yaml",
            'machines:\n  - hostnam: a\n  - hostname: b\n    settings: {a-b: "1"}\n    keys: [x]\n',
        )
    )
    assert [int(line.split(":")[0]) for line in told] == [2, 2, 4, 5]
    assert "perhaps you meant 'hostname'" in " ".join(told)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hostname\na\na\n", "3:1: machines[1].hostname: 'a' is a's already (machine 1 of the file)"),
        ("hostname,address\na,10.0.0.2/24\nb,10.0.0.2/24\n", "'10.0.0.2' is a's already"),
        ("hostname,colour\na,red\n", "1:2: unknown column 'colour'"),
        ("hostname,hostname\na,a\n", "1:2: the column 'hostname' stands twice"),
        ("hostname,PLANT\na\n", "2:1: 1 fields, and the first line names 2"),
        ('hostname\n"a\n', "not valid CSV"),
        ("hostname\n", "needs at least one item"),
    ],
)
def test_a_csv_that_cannot_be_meant(tmp_path: Path, text: str, message: str) -> None:
    assert message in "\n".join(problems(written(tmp_path, "bad.csv", text)))


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    for name in ("gone.csv", "gone.yaml"):
        assert "cannot be read: No such file" in problems(tmp_path / name)[0]


def test_settings_are_what_services_read_and_restart_with() -> None:
    files = render.seed_files(
        host_name="a",
        instance_id="i",
        public_keys=[KEY],
        settings={"TOKEN": 'a "b" $c `d` \\e', "N": "1"},
        services=["hello"],
    )
    user = yaml.safe_load(files["user-data"])
    (file,) = user["write_files"]
    assert (file["path"], file["permissions"]) == ("/etc/conda-appliance/settings.env", "0600")
    assert file["content"] == 'TOKEN="a \\"b\\" \\$c \\`d\\` \\\\e"\nN="1"\n'
    assert user["runcmd"] == [["systemctl", "--no-block", "try-restart", "hello.service"]]
    without = render.seed_files(host_name="a", instance_id="i", public_keys=[])
    assert not {"write_files", "runcmd", "ssh_authorized_keys"} & {*yaml.safe_load(without["user-data"])}
    assert "network-config" not in files, "which lets the machine's network come up at once"


def test_a_network_is_for_the_card_that_is_named_or_any_wired_one() -> None:
    for mac, match in (
        ("52:54:00:12:34:56", {"macaddress": "52:54:00:12:34:56"}),
        (None, {"name": "e*"}),
    ):
        files = render.seed_files(
            host_name="a",
            instance_id="i",
            public_keys=[],
            network={"address": "10.0.0.2/24", "gateway": "10.0.0.1", "dns": ("10.0.0.1",), "mac": mac},
        )
        assert yaml.safe_load(files["network-config"]) == {
            "version": 2,
            "ethernets": {
                "e*": {
                    "match": match,
                    "addresses": ["10.0.0.2/24"],
                    "routes": [{"to": "0.0.0.0/0", "via": "10.0.0.1"}],
                    "nameservers": {"addresses": ["10.0.0.1"]},
                }
            },
        }
