"""The machine booted as it should: nothing failed, its clock is right, it has entropy and space."""

import json
import time

import pytest


def test_no_unit_failed(host):
    failed = host.check_output("systemctl list-units --state=failed --plain --no-legend")
    assert failed == ""


def test_the_boot_finished(host):
    assert host.run("systemctl is-system-running").stdout.strip() in ("running", "degraded")
    # "degraded" is told by the check above, with the unit's name.


def test_the_host_is_named(host, appliance, fresh):
    assert host.check_output("hostname") == appliance.name


def test_the_clock_is_right(host):
    assert abs(int(host.check_output("date +%s")) - time.time()) < 120, "more than two minutes from ours"


def test_randomness_does_not_block(host):
    ready = host.run("/usr/bin/python3 -c 'import os; os.getrandom(32, os.GRND_NONBLOCK)'")
    assert ready.rc == 0, "the kernel's random numbers are not ready"


@pytest.mark.parametrize("what", ["blocks", "inodes"])
def test_the_root_file_system_has_space(host, what):
    option = "-i" if what == "inodes" else "-k"
    total, _used, free = map(int, host.check_output(f"df -P {option} /").splitlines()[1].split()[1:4])
    assert free > total * 0.05, f"{free} of {total} {what} free"


def test_it_says_what_it_is_made_of(host, appliance):
    """The bill of materials in the image (CycloneDX) has every package that the environments were asked for."""
    listed = json.loads(host.file("/etc/conda-appliance/sbom.cdx.json").content_string)["components"]
    conda = {
        (prop["value"], one["name"])
        for one in listed
        for prop in one["properties"]
        if one.get("purl", "").startswith("pkg:conda/") and prop["name"] == "conda-appliance:part"
    }
    asked = {(one.name, package) for one in appliance.environments for package in one.requested}
    assert asked <= conda and len(listed) > 10
