"""The verbs that make machines and use them: render, build, boot, ssh, check, catalog."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conda_appliance import batch, build, cli_options, definition, lazy, locking

if TYPE_CHECKING:
    from conda_appliance import session
else:
    session = lazy.module("conda_appliance.session")


def add(verbs: Any) -> None:
    """Their part of the command line."""
    verb = partial(cli_options.parser, verbs)

    one = verb(
        "render",
        _render,
        "write the Packer, Ansible and cloud-init files, and stop there",
        "They are ordinary files: `packer build .` in the folder does by hand what `build` does.",
    )
    cli_options.files(one)
    one.add_argument("--to", type=Path, metavar="DIR", help="where (default: out/NAME/render)")
    cli_options.out(one)
    cli_options.platform(one)
    one.add_argument("--offline", action="store_true", help="take everything from the cache")

    one = verb(
        "build",
        _build,
        "make the image, boot it, check it",
        "Reads the definition and its lock; writes out/NAME/ID/ with the image, manifest.json, SHA256SUMS, the\n"
        "rendered files, logs and the check report. The folder appears when everything has passed; until then\n"
        "the last good one stays. Nothing changed, nothing done.",
    )
    cli_options.files(one, many=True)
    cli_options.out(one)
    one.add_argument("--builder", choices=build.BUILDERS, help="instead of the definition's")
    cli_options.platform(one, "default: an image of each")
    one.add_argument("--offline", action="store_true", help="take everything from the cache, use no network")
    one.add_argument("--no-check", action="store_true", help="do not boot and check the image")
    one.add_argument(
        "--keep-failed", action="store_true", help="keep a failed build's disk, not only its logs"
    )
    one.add_argument("--lock", action="store_true", help="write the lock first if it is missing or stale")
    one.add_argument("--force", action="store_true", help="build although the same build is there")
    one.add_argument("--explain", action="store_true", help="of all that is made anew, tell what changed")
    cli_options.json(one)

    one = verb(
        "boot",
        _boot,
        "boot an image and leave it to you; Ctrl-C ends it",
        "Boots on an overlay: the image stays as it is. A key for this machine alone is made; `conda-appliance\n"
        "ssh` uses it. The ports of the definition's services are forwarded to 127.0.0.1.",
    )
    cli_options.image(one)
    cli_options.out(one)
    cli_options.machine(one)
    cli_options.platform(one)
    one.add_argument(
        "--port", type=cli_options.port, metavar="N", help="forward SSH from this port (default: a free one)"
    )
    one.add_argument(
        "--as",
        dest="attached",
        choices=("disk", "cd", "usb"),
        help="what the image is to the machine (default: its disk; its CD where FILE is a live disc, FILE.iso)",
    )

    one = verb(
        "ssh",
        _ssh,
        "log in to a machine that `boot` started",
        "example: conda-appliance ssh hello -- systemctl status hello",
    )
    one.add_argument("name", metavar="NAME", help="the image's name, as `boot` says it")
    cli_options.platform(one)
    one.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="run this instead of a shell"
    )

    one = verb(
        "check",
        _check,
        "boot an image on an overlay and run its checks over SSH",
        "The shipped checks and the definition's own. Exit 5 when one fails; the report (JUnit, summary, serial\n"
        "log, journal) is kept.\n\n"
        "example: conda-appliance check hello --boot-time",
    )
    cli_options.image(one)
    cli_options.out(one)
    cli_options.machine(one)
    cli_options.platform(one)
    one.add_argument(
        "--report", type=Path, metavar="DIR", help="where (default: out/NAME/check, or out/NAME/boot-time)"
    )
    one.add_argument(
        "--boot-time",
        action="store_true",
        help="run no checks: tell how long each phase takes from power-on to the service's first answer",
    )
    one.add_argument(
        "--vagrant",
        nargs="?",
        const="",
        metavar="MACHINE",
        help="boot nothing: check the machine that `vagrant up` started in this folder, its only one or MACHINE",
    )
    cli_options.json(one)

    one = verb(
        "catalog",
        _catalog,
        "put Vagrant boxes into a folder from which Vagrant adds and updates them",
        "Copies the boxes of the latest build, and writes NAME.json beside them; versions that are there stay. Serve\n"
        "the folder over HTTP, or share it. For this host alone a build writes out/NAME/NAME.json itself.\n\n"
        "example: conda-appliance catalog hello --to /srv/boxes --url https://boxes.example.org/",
    )
    cli_options.image(one)
    cli_options.out(one)
    one.add_argument("--to", type=Path, metavar="DIR", help="where (default: out/NAME/boxes)")
    one.add_argument(
        "--url", default="", metavar="URL", help="where the folder is found (default: its file URL)"
    )


def _render(args: argparse.Namespace) -> int:
    print(build.render(args.file, out=args.out, to=args.to, offline=args.offline, platform=args.platform))
    return 0


def _build(args: argparse.Namespace) -> int:
    if args.lock:
        for path in args.files:
            definition.load_image(path)  # every mistake before the first minute of the first lock
        for path in args.files:
            locking.ensure(path)
    results = batch.build(
        args.files,
        out=args.out,
        platform=args.platform,
        builder=args.builder,
        offline=args.offline,
        check=not args.no_check,
        keep_failed=args.keep_failed,
        force=args.force,
        explain=args.explain,
    )
    if args.json:
        cli_options.say([{"folder": str(r.folder), **r.manifest.model_dump(mode="json")} for r in results])
    else:
        for result in results:
            print(result.folder)
    return 0


def _boot(args: argparse.Namespace) -> int:
    session.boot(
        args.image,
        out=args.out,
        firmware=args.firmware,
        memory=args.memory,
        port=args.port,
        attached=args.attached,
        platform=args.platform,
    )
    return 0


def _ssh(args: argparse.Namespace) -> int:
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    return session.ssh(args.name, command, platform=args.platform)


def _check(args: argparse.Namespace) -> int:
    if args.vagrant is not None:
        told = build.check_vagrant(args.image, args.vagrant, out=args.out, report=args.report)
        if args.json:
            cli_options.say(told)
        return 0
    if args.boot_time:
        measured = build.boot_time(
            args.image,
            out=args.out,
            firmware=args.firmware,
            memory=args.memory,
            report=args.report,
            platform=args.platform,
        )
        if args.json:
            cli_options.say(measured.as_dict())
        else:
            print(measured.text())
        return 0
    report = build.check(
        args.image,
        out=args.out,
        firmware=args.firmware,
        memory=args.memory,
        report=args.report,
        platform=args.platform,
    )
    if args.json:
        cli_options.say(report)
    return 0


def _catalog(args: argparse.Namespace) -> int:
    print(build.publish(args.image, out=args.out, to=args.to, url=args.url))
    return 0
