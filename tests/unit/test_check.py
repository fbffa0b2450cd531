"""What a check's report says, and what the checks on the machine are told."""

import json

import pytest

from conda_appliance import check, check_report
from conda_appliance.facts import Appliance, Environment, Service

JUNIT = """<?xml version="1.0" encoding="utf-8"?>
<testsuites><testsuite name="pytest" errors="1" failures="1" skipped="1" tests="4">
<testcase classname="shipped.test_services" name="test_it_answers[hello-paramiko://machine]" time="1.234"/>
<testcase classname="shipped.test_access" name="test_a_password_is_refused" time="0.5">
<failure message="AssertionError: assert ['publickey', 'password'] == ['publickey']">long text</failure></testcase>
<testcase classname="own1.test_hello" name="test_it_says_hello[paramiko://machine]" time="0.1">
<error message="failed on setup">x</error></testcase>
<testcase classname="shipped.test_environments" name="test_python_runs[paramiko://machine-tools]" time="0">
<skipped message="no Python"/></testcase>
</testsuite></testsuites>
"""


@pytest.fixture
def report():
    return check_report.CheckReport(
        image="hello.qcow2",
        sha256="0" * 64,
        firmware="bios",
        accelerator="KVM: a test",
        boot_seconds=12.0,
        seconds=30.0,
        checks=tuple(check_report.read_junit(JUNIT)),
    )


def test_checks_are_named_by_file_and_test(report):
    assert [(one.name, one.outcome) for one in report.checks] == [
        ("test_services.py::test_it_answers[hello]", "passed"),
        ("test_access.py::test_a_password_is_refused", "failed"),
        ("test_hello.py::test_it_says_hello", "failed"),
        ("test_environments.py::test_python_runs[tools]", "skipped"),
    ]
    assert (report.passed, report.failed, report.skipped) == (1, 2, 1)


def test_the_summary_names_what_failed_and_why(report):
    assert report.text().splitlines() == [
        "hello.qcow2 (bios): 1 checks passed, 2 failed, 1 skipped; SSH after 12 s, 30 s in all",
        "  ✗ test_access.py::test_a_password_is_refused",
        "      assert ['publickey', 'password'] == ['publickey']",
        "  ✗ test_hello.py::test_it_says_hello",
        "      failed on setup",
    ]


def test_of_a_machine_that_ran_already_less_is_known(report):
    ran = check_report.CheckReport(
        image="hello in Vagrant's machine web", accelerator="KVM", seconds=30, checks=report.checks
    )
    assert ran.text().splitlines()[0] == (
        "hello in Vagrant's machine web: 1 checks passed, 2 failed, 1 skipped; 30 s in all"
    )


def test_the_report_is_written_for_programs_and_for_people(report, tmp_path):
    report.write(tmp_path)
    value = json.loads((tmp_path / "report.json").read_text())
    assert (value["failed"], value["checks"][0]["seconds"]) == (2, 1.2)
    assert (
        "FAILED     0.5 s  test_access.py::test_a_password_is_refused"
        in (tmp_path / "summary.txt").read_text()
    )


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("numpy", "numpy"),
        ("python 3.13.*", "python"),
        ("numpy>=2,<3", "numpy"),
        ("conda-forge::Flask[version='>=3']", "flask"),
        ("ruamel.yaml=0.18", "ruamel.yaml"),
    ],
)
def test_the_name_in_a_match_spec(spec, name):
    assert check.spec_name(spec) == name


def test_checks_read_the_facts_that_were_written(tmp_path):
    facts = Appliance(
        name="hello",
        version="1.0",
        user="admin",
        prefix="/opt/conda",
        read_only=False,
        frozen=False,
        virtual_packages=("__glibc=2.41=0",),
        first_boot=False,
        channels=("conda-forge",),
        environments=(
            Environment(name="base", prefix="/opt/conda", requested=("numpy",), has_python=True),
            Environment(name="r", prefix="/opt/conda/envs/r", requested=("r-base",), has_python=False),
        ),
        services=(Service(name="web", environment="base", port=80, path="/", forwarded=4711),),
        keys=("ssh-ed25519 AAAA me",),
        login="admin",
        people=("admin",),
        fresh=True,
        ssh_port=2222,
        private_key="/run/key",
        instance="check-1",
        prefix_check="/src/prefix_check.py",
        patience=5.0,
    )
    facts.write(tmp_path / "facts.json")
    assert Appliance.read(tmp_path / "facts.json") == facts
    assert [one.python for one in facts.environments] == ["/opt/conda/bin/python", "/usr/bin/python3"]
