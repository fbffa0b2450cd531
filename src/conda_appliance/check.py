"""Boots an image on an overlay and runs testinfra over SSH: the shipped checks, then the definition's own.

What comes out, in the report's folder: ``summary.txt``, ``report.json``, ``junit.xml`` (for CI), ``pytest.log``
and ``console.log``; where a check failed, ``journal.txt`` too. Or measures how an image starts, and checks nothing:
``boot-time.txt``, ``boot-time.json`` and what came when.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from conda_appliance import (
    boottime,
    log,
    machine,
    playbook,
    prefix_check,
    process,
    qemu,
    resources,
    seed,
    vagrant,
)
from conda_appliance import definition as definitions
from conda_appliance.boottime import BootTime
from conda_appliance.check_report import Check, CheckReport, one_machine, read_junit
from conda_appliance.definition import ImageDefinition
from conda_appliance.errors import ApplianceError, CheckFailed, UsageError
from conda_appliance.facts import Appliance, Environment, Service
from conda_appliance.lock import Lock
from conda_appliance.machine import Machine
from conda_appliance.qemu import Attachment, Firmware
from conda_appliance.vagrant import Vagrant

#: How long a machine's boot may take to finish after SSH answers, and all its checks together, in seconds,
#: under KVM; longer under emulation (`Accelerator.patience`).
SETTLE_TIMEOUT = 120.0
CHECKS_TIMEOUT = 300.0

_HOME = str(Path(__file__).resolve().parents[1])


def run(
    image: Path,
    definition: ImageDefinition,
    lock: Lock,
    *,
    definition_folder: Path,
    work: Path,
    report: Path,
    step: log.Step,
    firmware: str | None = None,
    memory: int | None = None,
    attached: Attachment = "disk",
) -> CheckReport:
    """Boot ``image`` and check it; ``work`` is scratch, ``report`` gets the files named above.

    ``firmware``: else the first that the definition names; ``memory`` in bytes, else 1 GiB; ``attached``: how the
    machine has ``image``, which may be a live disc.
    Failed checks are in the report. Raises CheckFailed when the machine cannot be reached, powers off in the
    middle, or when the image's own bytes changed; UsageError when a check's path is gone.
    """
    started = time.monotonic()
    for folder in (work, report):
        folder.mkdir(parents=True, exist_ok=True)
    tests = _collect(definition, definition_folder, work / "checks")
    step.update("hashing the image")
    before = resources.sha256_of(image)
    with _power_on(image, definition, work, firmware, memory, attached=attached) as (running, key, instance):
        try:
            boot_seconds = _reach(running, definition.access.user, key, step)
            facts = _facts(definition, lock, definition_folder, running, key, instance=instance)
            checks = [*_run_pytest(facts, tests, running, work, report, step), _power_off(running, step)]
        except ApplianceError as error:
            raise CheckFailed(
                f"{image.name} could not be checked: {error.message}",
                hint=f"the machine's console: {report / 'console.log'}",
            ) from error
        finally:
            if running.serial_log.exists():
                shutil.copyfile(running.serial_log, report / "console.log")
    after = resources.sha256_of(image)
    if after != before:
        raise CheckFailed(f"{image} changed while it was checked: SHA-256 {before} before, {after} after")
    outcome = CheckReport(
        image=image.name,
        sha256=before,
        firmware=_firmware(definition, firmware),
        accelerator=str(running.accelerator),
        boot_seconds=round(boot_seconds, 1),
        seconds=round(time.monotonic() - started, 1),
        checks=tuple(checks),
    )
    outcome.write(report)
    return outcome


def run_vagrant(
    name: str,
    definition: ImageDefinition,
    lock: Lock,
    *,
    definition_folder: Path,
    work: Path,
    report: Path,
    step: log.Step,
) -> CheckReport:
    """Check a machine that ``vagrant up`` started from a box of this definition, and leave it running.

    What belongs to a machine's first start alone is skipped. ``name`` and errors: see `vagrant.reach`; else as `run`.
    """
    started = time.monotonic()
    for folder in (work, report):
        folder.mkdir(parents=True, exist_ok=True)
    tests = _collect(definition, definition_folder, work / "checks")
    step.update("asking Vagrant for its way in")
    ports = [service.port for service in definition.services if service.port]
    found = machine.accelerator()
    with vagrant.reach(name, ports, work=work, patience=found.patience) as running:
        facts = _facts(definition, lock, definition_folder, running, running.key, login=running.user)
        checks = _run_pytest(facts, tests, running, work, report, step)
    outcome = CheckReport(
        image=f"{definition.name} in Vagrant's machine {running.name}",
        accelerator=str(found),
        seconds=round(time.monotonic() - started, 1),
        checks=tuple(checks),
    )
    outcome.write(report)
    return outcome


def boot_time(
    image: Path,
    definition: ImageDefinition,
    *,
    work: Path,
    report: Path,
    step: log.Step,
    firmware: str | None = None,
    memory: int | None = None,
) -> BootTime:
    """Boot ``image`` and tell how it started, until all of it had; ``report`` gets the figures and the console.

    Nobody logs in before the service has answered: under emulation a login takes seconds of the machine's time.
    Raises CheckFailed when the service does not answer, or the machine cannot be reached.
    """
    for folder in (work, report):
        folder.mkdir(parents=True, exist_ok=True)
    said = {name: boottime.Transcript() for name in qemu.TAPS}
    service = next((one for one in definition.services if one.port), None)
    with _power_on(
        image, definition, work, firmware, memory, lambda name, at, data: said[name].feed(at, data)
    ) as (running, key, _instance):
        try:
            answered = cpu = None
            if service and service.port:
                step.update(f"waiting for {service.name} to answer")
                asker = boottime.Asker(running.forwards[service.port], service.path, running.started)
                answered = asker.wait(machine.BOOT_TIMEOUT * running.accelerator.patience)
                cpu = running.cpu_seconds()
                if answered is None:
                    raise CheckFailed(f"{service.name} has not answered on port {service.port}")
            _reach(running, definition.access.user, key, step)
            unit = f"{service.name}.service" if service else ""
            sent = time.monotonic() - running.started
            first = running.run("cat /proc/uptime").stdout
            received = time.monotonic() - running.started
            answers = running.run(f"sudo -n sh -c {shlex.quote(boottime.script(unit))}", check=False)
            asked = boottime.read_answers(first, answers.stdout, sent=sent, received=received)
        except ApplianceError as error:
            raise CheckFailed(
                f"how {image.name} starts could not be measured: {error.message}",
                hint=f"the machine's console: {report / 'console.log'}",
            ) from error
        finally:
            if running.serial_log.exists():
                shutil.copyfile(running.serial_log, report / "console.log")
    outcome = BootTime(
        image=image.name,
        firmware=_firmware(definition, firmware),
        accelerator=str(running.accelerator),
        cpus=running.accelerator.processors,
        service=service.name if service else None,
        answered=answered,
        cpu=cpu,
        asked=asked,
        phases=boottime.phases(said["firmware"], said["console"], asked),
    )
    outcome.write(report, said)
    return outcome


@contextmanager
def _power_on(
    image: Path,
    definition: ImageDefinition,
    work: Path,
    firmware: str | None,
    memory: int | None,
    arrived: qemu.Arrived | None = None,
    attached: Attachment = "disk",
) -> Iterator[tuple[Machine, Path, str]]:
    """A machine of ``image`` with a seed of its own: it, the key that its administrator admits, its instance."""
    key = machine.new_key(work)
    instance = f"check-{uuid.uuid4()}"
    disc = seed.write(
        work / "seed.iso",
        host_name=definition.name,
        instance_id=instance,
        public_keys=[key.with_suffix(".pub").read_text(encoding="utf-8").strip()],
        epoch=int(time.time()),
    )
    with machine.boot(
        image,
        work=work,
        firmware=_firmware(definition, firmware),
        seed=disc,
        memory_mib=(memory or 1 << 30) >> 20,
        forwards=[service.port for service in definition.services if service.port],
        name=definition.name,
        arrived=arrived,
        attached=attached,
        platform=definition.platform,
    ) as running:
        yield running, key, instance


def _firmware(definition: ImageDefinition, asked: str | None) -> Firmware:
    return cast(Firmware, asked or definition.disk.firmware[0])


def _collect(definition: ImageDefinition, folder: Path, to: Path) -> Path:
    """The shipped checks and the definition's own, side by side in a folder of their own.

    There no ``conftest.py``, ``pytest.ini`` or ``pyproject.toml`` of a folder above reaches them.
    """
    sources = [("shipped", resources.find("tests/guest"))]
    for number, name in enumerate(definition.checks, start=1):
        sources.append((f"own{number}", folder / Path(name).expanduser()))
    for name, source in sources:
        if source.is_dir():
            shutil.copytree(source, to / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            (to / name).mkdir(parents=True)
            shutil.copy2(source, to / name / source.name)
        else:
            raise UsageError(f"the checks {source} are not there", hint="see `checks` in the definition")
    (to / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    return to


def _reach(running: Machine, user: str, key: Path, step: log.Step) -> float:
    """Wait for SSH, then until the boot has come to its end; returns the seconds from power-on to SSH."""
    seconds = running.wait_for_ssh(user, key, progress=step.update)
    step.update(f"SSH after {seconds:.0f} s; waiting for the boot to finish")
    # Both only wait here. How the boot ended ("degraded") is a check, which can say what failed.
    wait = (
        "systemctl is-system-running --wait; ! command -v cloud-init >/dev/null || cloud-init status --wait"
    )
    running.run(wait, timeout=SETTLE_TIMEOUT * running.accelerator.patience, check=False)
    return seconds


def _facts(
    definition: ImageDefinition,
    lock: Lock,
    folder: Path,
    running: Machine | Vagrant,
    key: Path,
    *,
    instance: str = "",
    login: str = "",
) -> Appliance:
    """What the checks should know. ``login`` is who logs in where that is not the administrator: a box's user."""
    user = definition.access.user
    environments = [
        Environment(
            name=name,
            prefix=section.prefix,
            requested=tuple(spec_name(spec) for spec in section.specs),
            has_python=any(package.name == "python" for package in section.packages),
        )
        for name, section in lock.conda.environments.items()
    ]
    services = [
        Service(
            name=service.name,
            environment=service.environment,
            port=service.port,
            path=service.path,
            forwarded=running.forwards.get(service.port or 0),
        )
        for service in definition.services
    ]
    allowed = [vagrant.public_key(key)]
    for one in definition.access.keys:
        text = one
        if not definitions.is_public_key(one):
            text = (folder / Path(one).expanduser()).read_text(encoding="utf-8")
        allowed += [line.strip() for line in text.splitlines() if definitions.is_public_key(line.strip())]
    return Appliance(
        name=definition.name,
        version=definition.version,
        user=user,
        login=login or user,
        people=(user, login) if login else (user,),
        fresh=bool(instance),
        prefix=definition.conda.prefix,
        read_only=definition.disk.layout == "split",
        frozen=definition.conda.frozen,
        virtual_packages=lock.conda.virtual_packages,
        channels=tuple(playbook.machine_channels(definition)),
        first_boot=lock.conda.post_link == "first-boot",
        environments=tuple(environments),
        services=tuple(services),
        keys=tuple(allowed),
        ssh_port=running.ssh_port,
        private_key=str(key),
        instance=instance,
        prefix_check=str(Path(prefix_check.__file__).resolve()),
        patience=running.patience,
    )


def spec_name(spec: str) -> str:
    """The package's name in a match spec: ``conda-forge::numpy >=2`` → ``numpy``."""
    found = re.match(r"\s*(?:\S+::)?([A-Za-z0-9_.-]+)", spec)
    return found[1].lower() if found else spec


def _run_pytest(
    facts: Appliance, tests: Path, running: Machine | Vagrant, work: Path, report: Path, step: log.Step
) -> list[Check]:
    """Run pytest in a process of its own, with nothing of the user's pytest settings and plugins."""
    facts.write(work / "appliance.json")
    config = work / "ssh_config"
    config.write_text(_ssh_config(facts), encoding="utf-8")
    argv: list[process.Argument] = [sys.executable, "-m", "pytest", "-v", "--color=no", "--tb=short"]
    argv += ["-c", tests / "pytest.ini", "--rootdir", tests, "--import-mode=importlib"]
    argv += ["-p", "testinfra.plugin", "-p", "conda_appliance.guest", "-p", "no:cacheprovider"]
    argv += ["--hosts=paramiko://machine?timeout=60", "--ssh-config", config]
    argv += ["--appliance", work / "appliance.json", "--junitxml", report / "junit.xml"]
    argv += sorted(path for path in tests.iterdir() if path.is_dir())[::-1]  # the shipped ones first
    finished = 0

    def on_line(line: str) -> None:
        nonlocal finished
        match = re.match(r"\S+::(\S.*?) (PASSED|FAILED|SKIPPED|ERROR)\s+\[", line)
        if match:
            finished += 1
            words = one_machine(match[1]).removeprefix("test_").replace("_", " ")
            step.update(f"check {finished} {match[2].lower()}: {words}")

    done = process.run(
        argv,
        cwd=tests,
        env={
            "PYTEST_ADDOPTS": "",
            "PYTEST_PLUGINS": "",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            # The child finds this package where we were found.
            "PYTHONPATH": os.pathsep.join([_HOME, *filter(None, [os.environ.get("PYTHONPATH")])]),
        },
        timeout=CHECKS_TIMEOUT * running.patience,
        check=False,
        on_line=on_line,
    )
    (report / "pytest.log").write_text(done.stdout, encoding="utf-8")
    if done.returncode not in (0, 1):  # 2 interrupted, 3 internal error, 4 usage, 5 nothing collected
        last = "\n".join(done.stdout.strip().splitlines()[-20:])
        raise CheckFailed(f"the checks could not be run (pytest ended with {done.returncode}):\n{last}")
    if done.returncode == 1:
        journal = running.run("sudo -n journalctl -b --no-pager -o short-monotonic", check=False)
        (report / "journal.txt").write_text(journal.stdout, encoding="utf-8")
    return read_junit((report / "junit.xml").read_text(encoding="utf-8"))


def _ssh_config(facts: Appliance) -> str:
    """What testinfra's paramiko is told. The port is our own QEMU's: whose host key it is needs no proof."""
    return (
        f"Host machine\n  HostName 127.0.0.1\n  Port {facts.ssh_port}\n  User {facts.login}\n"
        f'  IdentityFile "{facts.private_key}"\n  StrictHostKeyChecking no\n'
    )


def _power_off(running: Machine, step: log.Step) -> Check:
    """The last check: a machine whose power button is pressed shuts down in order."""
    step.update("pressing the power button")
    started = time.monotonic()
    clean = running.shut_down()
    return Check(
        name="machine::powers_off_when_its_button_is_pressed",
        outcome="passed" if clean else "failed",
        seconds=round(time.monotonic() - started, 1),
        message="" if clean else "it was still running when its time was over, and was switched off",
    )
