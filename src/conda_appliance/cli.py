"""The command line: verbs, exit codes, what goes to stdout and what to stderr."""

from __future__ import annotations

import argparse
import errno
import gc
import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import shtab

import conda_appliance
from conda_appliance import (
    batch,
    build,
    definition,
    disc,
    discs,
    formats,
    lock,
    log,
    manifest,
    namespace,
    process,
    project,
    resources,
    session,
    verify,
)
from conda_appliance.errors import (
    DISK_FULL,
    ApplianceError,
    DefinitionError,
    HashMismatch,
    Interrupted,
    Problem,
    UsageError,
)

_EXIT_CODES = """\
exit codes:
  0 done                                3 lock missing or stale, or a hash does not match
  1 build failed                        4 a program of the host is missing
  2 usage or a definition is wrong      5 built, but a check failed       130 interrupted
"""

#: The verbs that make or remove trees of files with other owners than ours.
_AS_ROOT = ("build", "render", "verify", "cache", "clean")

#: What ``disc IMAGE`` can make.
_KINDS = ("payload", "userspace", "live", "installer", "seed")
#: … and of these, what is made from trees of files with other owners than ours.
_KINDS_AS_ROOT = ("payload", "userspace", "live", "installer")

_DISC = """\
Make one from a definition and its lock, or from a result in out/:

  conda-appliance disc images/hello.yaml payload      installs on a machine that already runs Linux
  conda-appliance disc images/hello.yaml userspace    runs from the disc on a machine that already runs Linux
  conda-appliance disc images/hello.yaml live         starts the appliance itself, from a CD or a stick
  conda-appliance disc images/hello.yaml installer    installs the appliance on a disk of the machine it starts
  conda-appliance disc images/hello.yaml seed FILE    one for each machine of a batch: name, keys, network, settings

Look at one, and bring it to a stick:

  conda-appliance disc ls FILE                        what is on it
  conda-appliance disc verify FILE-OR-DEVICE          every file against its SHA256SUMS
  conda-appliance disc write FILE /dev/sdX            erases the stick, writes, reads back

`conda-appliance disc KIND --help` tells more of each.
"""

_MAIN = """\
From one definition to a machine:

  conda-appliance init myapp                     write an example to start from
  conda-appliance lock images/myapp.yaml         pin every package by SHA-256
  conda-appliance build images/myapp.yaml        make the image, boot it, check it
  conda-appliance boot myapp                     use it; Ctrl-C ends it

Results go to stdout, progress to stderr. `conda-appliance VERB --help` tells more.
"""


def parser() -> argparse.ArgumentParser:
    """The whole command line, from which help and shell completion are made."""
    top = argparse.ArgumentParser(
        prog="conda-appliance",
        description="Golden VM images that carry conda environments, from one definition and one lock.\n\n"
        + _MAIN,
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"conda-appliance {conda_appliance.__version__}")
    shtab.add_argument_to(top, ["--print-completion"], help="print the completion script of a shell")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(
        name: str, run: Callable[[argparse.Namespace], int], brief: str, text: str
    ) -> argparse.ArgumentParser:
        return _parser(verbs, name, run, brief, text)

    one = verb(
        "init",
        _init,
        "write a commented example of a new appliance",
        "Writes a definition, a small service, a playbook role and a check; never over a file that is there.\n\n"
        "example: conda-appliance init myapp && conda-appliance validate images/myapp.yaml",
    )
    one.add_argument("name", metavar="NAME", help="lower-case letters, digits and '-'")
    one.add_argument("--dir", type=Path, default=Path(), metavar="DIR", help="where (default: here)")

    one = verb(
        "validate",
        _validate,
        "check definitions, telling every mistake at once",
        "Each mistake is one line: FILE:LINE:COLUMN: PATH: what is wrong.\n\n"
        "example: conda-appliance validate images/*.yaml",
    )
    _files(one, many=True)
    _json(one)

    one = verb(
        "show", _show, "show a definition with all its defaults", "example: conda-appliance show hello.yaml"
    )
    _files(one)
    _json(one)

    one = verb(
        "schema",
        _schema,
        "print the JSON Schema of a definition",
        "For editors: save it, and begin a definition with\n"
        "  # yaml-language-server: $schema=conda-appliance.schema.json\n"
        "--markdown prints the reference page made from the same declaration.",
    )
    one.add_argument("--markdown", action="store_true", help="print the reference page instead")

    one = verb(
        "formats",
        _formats,
        "list all forms that an appliance ships as",
        "Of each: what opens it, what is tested with it, and the command that takes it into use.\n"
        "--markdown prints the reference page made from the same table.",
    )
    one.add_argument("--markdown", action="store_true", help="print the reference page instead")
    _json(one)

    one = verb(
        "lock",
        _lock,
        "pin every package of a definition by version and SHA-256",
        "Writes NAME.lock beside the definition. A lock that still answers its definition is kept as it is;\n"
        "--upgrade resolves again and takes what is newest. Needs the network (or a mirror, or folder channels).",
    )
    _files(one)
    one.add_argument("--upgrade", action="store_true", help="resolve again although the lock is fresh")
    _json(one)

    one = verb(
        "fetch",
        _fetch,
        "download what a lock names, verified, so that a build needs no network",
        "Every file is checked against the lock's SHA-256, those already in the cache too.",
    )
    _files(one)
    one.add_argument("--offline", action="store_true", help="only verify what is in the cache")
    _json(one)

    one = verb(
        "render",
        _render,
        "write the Packer, Ansible and cloud-init files, and stop there",
        "They are ordinary files: `packer build .` in the folder does by hand what `build` does.",
    )
    _files(one)
    one.add_argument("--to", type=Path, metavar="DIR", help="where (default: out/NAME/render)")
    _out(one)
    one.add_argument("--offline", action="store_true", help="take everything from the cache")

    one = verb(
        "build",
        _build,
        "make the image, boot it, check it",
        "Reads the definition and its lock; writes out/NAME/ID/ with the image, manifest.json, SHA256SUMS, the\n"
        "rendered files, logs and the check report. The folder appears when everything has passed; until then\n"
        "the last good one stays. Nothing changed, nothing done.",
    )
    _files(one, many=True)
    _out(one)
    one.add_argument("--builder", choices=build.BUILDERS, help="instead of the definition's")
    one.add_argument("--offline", action="store_true", help="take everything from the cache, use no network")
    one.add_argument("--no-check", action="store_true", help="do not boot and check the image")
    one.add_argument(
        "--keep-failed", action="store_true", help="keep a failed build's disk, not only its logs"
    )
    one.add_argument("--lock", action="store_true", help="write the lock first if it is missing or stale")
    one.add_argument("--force", action="store_true", help="build although the same build is there")
    one.add_argument("--explain", action="store_true", help="of all that is made anew, tell what changed")
    _json(one)

    one = verb(
        "boot",
        _boot,
        "boot an image and leave it to you; Ctrl-C ends it",
        "Boots on an overlay: the image stays as it is. A key for this machine alone is made; `conda-appliance\n"
        "ssh` uses it. The ports of the definition's services are forwarded to 127.0.0.1.",
    )
    _image(one)
    _out(one)
    _machine(one)
    one.add_argument(
        "--port", type=_port, metavar="N", help="forward SSH from this port (default: a free one)"
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
    _image(one)
    _out(one)
    _machine(one)
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
    _json(one)

    one = verb(
        "catalog",
        _catalog,
        "put Vagrant boxes into a folder from which Vagrant adds and updates them",
        "Copies the boxes of the latest build, and writes NAME.json beside them; versions that are there stay. Serve\n"
        "the folder over HTTP, or share it. For this host alone a build writes out/NAME/NAME.json itself.\n\n"
        "example: conda-appliance catalog hello --to /srv/boxes --url https://boxes.example.org/",
    )
    _image(one)
    _out(one)
    one.add_argument("--to", type=Path, metavar="DIR", help="where (default: out/NAME/boxes)")
    one.add_argument(
        "--url", default="", metavar="URL", help="where the folder is found (default: its file URL)"
    )

    one = verb(
        "disc",
        _disc_help,
        "make an ISO 9660 disc for machines without a network, or read, verify, write one",
        _DISC,
    )
    one.usage = (
        "conda-appliance disc IMAGE KIND …  |  disc ls FILE  |  disc verify FILE  |  disc write FILE DEVICE"
    )
    _disc(one.add_subparsers(dest="disc", metavar="KIND", required=True))

    one = verb(
        "verify",
        _verify,
        "compare a result with its manifest, or with what its lock gives today",
        "Reads every artifact and compares it with manifest.json. With --rebuild it is built anew from the result's\n"
        "lock, with nothing of the cache but the verified downloads, and must have the same bytes; a file that\n"
        "differs is named. Results of the rootfs builder are reproducible; Packer's are not. Exit 3 on a difference.",
    )
    _image(one)
    _out(one)
    one.add_argument("--rebuild", action="store_true", help="build it anew and compare the bytes")
    one.add_argument("--offline", action="store_true", help="take all downloads from the cache")
    _json(one)

    one = verb(
        "cache",
        _cache,
        "list, prune or verify the layers of the cache",
        "A layer is something that was made once: a system, linked environments, what the playbook changed, a disk.\n"
        "Builds keep them within 20 GiB, the latest ones first; one that a build uses is never removed.\n\n"
        "examples: conda-appliance cache list\n"
        "          conda-appliance cache prune --size 5GiB      conda-appliance cache prune --age 30",
    )
    one.add_argument("action", choices=("list", "prune", "verify"), help="what to do")
    one.add_argument(
        "--size", type=definition.parse_size, metavar="SIZE", help="prune: leave this much, e.g. 5GiB"
    )
    one.add_argument("--age", type=float, metavar="DAYS", help="prune: remove what was not used for so long")
    _json(one)

    one = verb(
        "clean",
        _clean,
        "remove caches and what dead runs left",
        "Never touches a result that passed its checks, unless asked with --results.",
    )
    _out(one)
    one.add_argument(
        "--leftovers", action="store_true", help="keep the caches: leftovers and failed builds only"
    )
    one.add_argument("--results", action="store_true", help="remove all results too")
    return top


def _parser(
    among: Any,
    name: str,
    run: Callable[[argparse.Namespace], int],
    brief: str,
    text: str,
    usage: str | None = None,
) -> argparse.ArgumentParser:
    """The parser of a verb, or of what follows one, whose help looks like that of all others."""
    made: argparse.ArgumentParser = among.add_parser(
        name,
        help=brief,
        usage=usage,
        description=f"{brief[0].upper()}{brief[1:]}.\n\n{text}",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.set_defaults(run=run)
    return made


def _disc(kinds: Any) -> None:
    """What follows ``disc``. The parser has the kind before the image; people say it after (`_kind_first`)."""

    def kind(
        name: str, run: Callable[[argparse.Namespace], int], usage: str, brief: str, text: str
    ) -> argparse.ArgumentParser:
        return _parser(kinds, name, run, brief, text, usage=f"conda-appliance disc {usage}")

    one = kind(
        "payload",
        _disc_payload,
        "IMAGE payload [--channel] [--to DIR]",
        "the disc that installs the environments and services on a machine that already runs Linux",
        "`sh install.sh` on it installs, upgrades, rolls back, checks and uninstalls; it needs a shell, coreutils and\n"
        "tar there, no network and no Python. The same lock and files give the same bytes.\n\n"
        "examples: conda-appliance disc images/hello.yaml payload\n"
        "          conda-appliance disc hello payload --channel      as its latest build was locked",
    )
    _image(one)
    _disc_place(one)
    one.add_argument(
        "--channel",
        action="store_true",
        help="carry the packages too, as a conda channel that needs no network",
    )
    one.add_argument("--offline", action="store_true", help="take everything from the cache, use no network")

    one = kind(
        "userspace",
        _disc_userspace,
        "IMAGE userspace [--to DIR]",
        "the disc that the environments and services run from on a machine that already runs Linux",
        "`sh mount.sh` on it mounts the environments read-only at their prefix, now and whenever the disc is put in,\n"
        "and has systemd run the services while it is there; `--undo` takes that away again. `disc.userspace` of the\n"
        "definition says in which form they lie there. The same lock and files give the same bytes.\n\n"
        "example: conda-appliance disc images/hello.yaml userspace",
    )
    _image(one)
    _disc_place(one)
    one.add_argument("--offline", action="store_true", help="take everything from the cache, use no network")

    one = kind(
        "live",
        _disc_live,
        "IMAGE live [--to DIR]",
        "the disc that starts the appliance, from a CD or a stick, by BIOS or UEFI",
        "Nothing is written to the machine's disks: changes are kept in memory, or in a partition labelled\n"
        "'appliance-data' where there is one. Its menu starts it from memory (the disc can be taken out),\n"
        "verifies the disc first, or forgets what was kept. Needs a Debian base; for a stick, one with\n"
        "`kernel: generic`.\n\n"
        "example: conda-appliance disc images/hello.yaml live",
    )
    _image(one)
    _disc_place(one)
    one.add_argument("--offline", action="store_true", help="take everything from the cache, use no network")

    one = kind(
        "installer",
        _disc_installer,
        "IMAGE installer [--to DIR]",
        "the disc that installs the appliance on a disk of the machine that it starts",
        "It shows the machine's disks on screen and serial port, asks, writes the image, reads it back, and\n"
        "starts what it installed. A disk that holds anything is only written to when it is named: by whoever\n"
        "is asked, or by `installer:` in the definition, which can also have it done without a question. A\n"
        "definition is built and checked first; a result is taken as it is.\n\n"
        "examples: conda-appliance disc images/hello.yaml installer\n"
        "          conda-appliance disc hello installer              of its latest result",
    )
    _image(one)
    _disc_place(one)
    one.add_argument("--offline", action="store_true", help="take everything from the cache, use no network")

    one = kind(
        "seed",
        _disc_seed,
        "IMAGE seed FILE.yaml|FILE.csv [--to DIR]",
        "a NoCloud disc for each machine of a batch: its name, keys, network and settings",
        "The machine reads it at its first boot. All of FILE is checked before anything is written. A file is:\n\n"
        "  keys: [ssh-ed25519 AAAA… me]              # for all of them\n"
        "  machines:\n"
        "    - hostname: plant-1                     # without a network: DHCP\n"
        "    - hostname: plant-2\n"
        "      network: {address: 192.168.7.10/24, gateway: 192.168.7.1, dns: [192.168.7.1]}\n"
        "      settings: {PLANT: north}              # variables of the services\n\n"
        "or a CSV with the columns hostname, keys, address, gateway, dns, mac, and a setting in each in capitals.\n\n"
        "example: conda-appliance disc images/hello.yaml seed plants.csv --to seeds",
    )
    _image(one)
    one.add_argument(
        "batch", type=Path, metavar="FILE", help="the machines: .yaml or .csv"
    ).complete = shtab.FILE  # type: ignore[attr-defined]
    _disc_place(one)

    one = kind(
        "ls",
        _disc_ls,
        "ls FILE [--json]",
        "list what is on a disc",
        "By its Rock Ridge names, with modes and sizes in bytes.\n\nexample: conda-appliance disc ls seed.iso",
    )
    _disc_file(one, "a disc: a file or a device")
    _json(one)

    one = kind(
        "verify",
        _disc_verify,
        "verify FILE-OR-DEVICE",
        "read every file of a disc and compare it with its SHA256SUMS",
        "Exit 3, with its name, for a file that is not what it was.\n\n"
        "examples: conda-appliance disc verify out/hello/discs/hello-1.0.0-payload.iso\n"
        "          conda-appliance disc verify /dev/sr0",
    )
    _disc_file(one, "a disc: a file or a device")

    one = kind(
        "write",
        _disc_write,
        "write FILE DEVICE [--data] [--erase DEVICE]",
        "write a disc to a stick, and read it back",
        "Everything on DEVICE is lost. It must be a whole disk that nothing uses: one that is mounted, is swap space,\n"
        "is part of a RAID, LVM or encrypted disk, or that this system runs from is refused. It asks for the\n"
        "name of the device once more; scripts say it with --erase.\n\n"
        "example: lsblk, then: conda-appliance disc write hello-1.0.0-payload.iso /dev/sdb --erase /dev/sdb",
    )
    _disc_file(one, "a disc")
    one.add_argument("device", type=Path, metavar="DEVICE", help="a whole disk, such as /dev/sdb")
    one.add_argument(
        "--data", action="store_true", help="a live disc keeps what is written: in a partition behind it"
    )
    one.add_argument("--erase", metavar="DEVICE", help="the device once more: it may be erased, do not ask")


def _disc_file(one: argparse.ArgumentParser, text: str) -> None:
    one.add_argument("file", type=Path, metavar="FILE", help=text).complete = shtab.FILE  # type: ignore[attr-defined]


def _disc_place(one: argparse.ArgumentParser) -> None:
    _out(one)
    one.add_argument("--to", type=Path, metavar="DIR", help="where (default: out/NAME/discs)")


def _kind_first(argv: Sequence[str]) -> Sequence[str]:
    """``disc IMAGE KIND …`` as argparse takes it, ``disc KIND IMAGE …``; anything else as it is."""
    if len(argv) > 2 and argv[0] == "disc" and argv[2] in _KINDS and argv[1] not in _KINDS:
        return [argv[0], argv[2], argv[1], *argv[3:]]
    return argv


def _files(one: argparse.ArgumentParser, *, many: bool = False) -> None:
    action = one.add_argument(
        "files" if many else "file",
        type=Path,
        nargs="+" if many else None,
        metavar="FILE",
        help="a definition, e.g. images/hello.yaml",
    )
    action.complete = shtab.FILE  # type: ignore[attr-defined]


def _image(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "image", metavar="IMAGE", help="a definition, a name under out/, a build's folder, or a disk file"
    )


def _machine(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--firmware", choices=("bios", "uefi"), help="default: the first that the definition names"
    )
    one.add_argument("--memory", type=definition.parse_size, metavar="SIZE", help="default: 1GiB")


def _out(one: argparse.ArgumentParser) -> None:
    one.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="results (default: out)")


def _json(one: argparse.ArgumentParser) -> None:
    one.add_argument("--json", action="store_true", help="print the answer as JSON")


def _port(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: 1 to 65535")
    return int(text)


# --- verbs ----------------------------------------------------------------------------------------


def _say(value: Any) -> None:
    print(manifest.as_json(value))


def _init(args: argparse.Namespace) -> int:
    for path in project.init(args.dir, args.name):
        print(path)
    log.info(f"next: conda-appliance validate {args.dir / 'images' / args.name}.yaml")
    return 0


def _validate(args: argparse.Namespace) -> int:
    problems: list[Problem] = []
    for path in args.files:
        try:
            definition.load_image(path)
        except DefinitionError as error:
            problems += error.problems
        else:
            log.info(f"{path}: valid")
    if args.json:
        _say([vars(problem) for problem in problems])
    else:
        for problem in problems:
            print(problem)
    return DefinitionError.exit_code if problems else 0


def _show(args: argparse.Namespace) -> int:
    image = definition.load_image(args.file)
    value = image.model_dump(mode="json", by_alias=True)
    if args.json:
        _say(value)
    else:
        print(definition.as_yaml(value), end="")
    return 0


def _schema(args: argparse.Namespace) -> int:
    if args.markdown:
        print(definition.reference(), end="")
    else:
        _say(definition.schema())
    return 0


def _formats(args: argparse.Namespace) -> int:
    if args.json:
        _say([formats.as_dict(form) for form in formats.FORMS])
    else:
        print(formats.reference() if args.markdown else formats.text(), end="" if args.markdown else "\n")
    return 0


def _lock(args: argparse.Namespace) -> int:
    made, changed = build.ensure_lock(args.file, upgrade=args.upgrade)
    path = lock.path_for(args.file)
    if args.json:
        _say({"lock": str(path), "changed": changed, **manifest.package_counts(made)})
    else:
        print(path)
    return 0


def _fetch(args: argparse.Namespace) -> int:
    inputs = build.fetch(args.file, offline=args.offline)
    if args.json:
        _say({digest: str(path) for digest, path in inputs.files.items()})
    return 0


def _render(args: argparse.Namespace) -> int:
    print(build.render(args.file, out=args.out, to=args.to, offline=args.offline))
    return 0


def _build(args: argparse.Namespace) -> int:
    for path in args.files:
        definition.load_image(path)  # every mistake before the first minute of the first build
    if args.lock:
        for path in args.files:
            build.ensure_lock(path)
    results = batch.build(
        args.files,
        out=args.out,
        builder=args.builder,
        offline=args.offline,
        check=not args.no_check,
        keep_failed=args.keep_failed,
        force=args.force,
        explain=args.explain,
    )
    if args.json:
        _say([{"folder": str(r.folder), **r.manifest.model_dump(mode="json")} for r in results])
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
    )
    return 0


def _ssh(args: argparse.Namespace) -> int:
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    return session.ssh(args.name, command)


def _catalog(args: argparse.Namespace) -> int:
    print(build.publish(args.image, out=args.out, to=args.to, url=args.url))
    return 0


def _check(args: argparse.Namespace) -> int:
    if args.vagrant is not None:
        told = build.check_vagrant(args.image, args.vagrant, out=args.out, report=args.report)
        if args.json:
            _say(told)
        return 0
    if args.boot_time:
        measured = build.boot_time(
            args.image, out=args.out, firmware=args.firmware, memory=args.memory, report=args.report
        )
        if args.json:
            _say(measured.as_dict())
        else:
            print(measured.text())
        return 0
    report = build.check(
        args.image, out=args.out, firmware=args.firmware, memory=args.memory, report=args.report
    )
    if args.json:
        _say(report)
    return 0


def _verify(args: argparse.Namespace) -> int:
    if args.rebuild:
        answer = verify.rebuild(args.image, out=args.out, offline=args.offline)
    else:
        written = verify.verify(args.image, out=args.out)
        answer = {"artifacts": {record.file: record.sha256 for record in written.artifacts}}
    if args.json:
        _say(answer)
    return 0


def _disc_help(_args: argparse.Namespace) -> int:
    raise UsageError("say what kind of disc, or what to do with one", hint="conda-appliance disc --help")


def _disc_payload(args: argparse.Namespace) -> int:
    print(discs.payload(args.image, out=args.out, to=args.to, offline=args.offline, channel=args.channel))
    return 0


def _disc_userspace(args: argparse.Namespace) -> int:
    print(discs.userspace(args.image, out=args.out, to=args.to, offline=args.offline))
    return 0


def _disc_live(args: argparse.Namespace) -> int:
    print(discs.live(args.image, out=args.out, to=args.to, offline=args.offline))
    return 0


def _disc_installer(args: argparse.Namespace) -> int:
    print(discs.installer(args.image, out=args.out, to=args.to, offline=args.offline))
    return 0


def _disc_seed(args: argparse.Namespace) -> int:
    for path in discs.seeds(args.image, args.batch, out=args.out, to=args.to):
        print(path)
    return 0


def _disc_ls(args: argparse.Namespace) -> int:
    found = disc.contents(args.file)
    if args.json:
        entries = [
            {
                "path": one.path,
                "mode": stat.filemode(one.mode),
                "size": one.size,
                "target": one.target or None,
            }
            for one in found.entries
        ]
        _say({"volume": found.volume, "entries": entries})
        return 0
    log.info(f"{args.file}: {found.volume}")
    for one in found.entries:
        to = f" -> {one.target}" if one.target else ""
        print(f"{stat.filemode(one.mode)} {one.size:>12} {one.path}{to}")
    return 0


def _disc_verify(args: argparse.Namespace) -> int:
    discs.verify(args.file)
    return 0


def _disc_write(args: argparse.Namespace) -> int:
    ask = _ask if sys.stdin.isatty() else None
    discs.write(args.file, args.device, erase=args.erase, ask=ask, data=args.data)
    return 0


def _ask(question: str) -> str:
    """A question on stderr, as everything but results; the answer from the terminal."""
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline()


def _cache(args: argparse.Namespace) -> int:
    if args.action != "prune" and (args.size is not None or args.age is not None):
        raise UsageError("--size and --age belong to `cache prune`")
    if args.action == "prune" and args.size is None and args.age is None:
        raise UsageError(
            "say what may go: --size SIZE leaves that much, --age DAYS removes what was not used so long"
        )
    store = build.layer_store()
    if args.action == "verify":
        damaged = store.verify()
        for line in damaged:
            log.error(line)
        if args.json:
            _say({"damaged": damaged})
        else:
            log.info(f"{len(store.entries())} layers are as they were made, {len(damaged)} are not")
        return HashMismatch.exit_code if damaged else 0
    entries = (
        store.entries()
        if args.action == "list"
        else store.prune(size=args.size, age=None if args.age is None else args.age * 86400)
    )
    if args.json:
        _say(
            [
                {"layer": f"{one.kind}/{one.key}", "of": one.subject, "size": one.size, "used": one.used}
                for one in entries
            ]
        )
        return 0
    for one in entries:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.used))
        print(f"{resources.size_text(one.size):>10}  {when}  {one.kind}/{one.key}  {one.subject}")
    verbed = "removed" if args.action == "prune" else "in all"
    log.info(f"{len(entries)} layers, {resources.size_text(sum(one.size for one in entries))} {verbed}")
    return 0


def _clean(args: argparse.Namespace) -> int:
    for path in build.clean(args.out, caches=not args.leftovers, built=args.results):
        print(path)
    return 0


# --- the process ----------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code. Errors are told here and nowhere else."""
    os.environ[process.MARK] = process.mark()
    os.umask(0o022)  # what is made is for all to read, as images are; keys have modes of their own
    # SIGINT too: a shell that starts us in the background has it ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        words = sys.argv[1:] if argv is None else argv
        args = parser().parse_args(_kind_first(words))
        if args.verb in _AS_ROOT or getattr(args, "disc", "") in _KINDS_AS_ROOT:
            namespace.become_root(words)
        code: int = args.run(args)
    except DefinitionError as error:
        return _tell(error, plain=True)
    except ApplianceError as error:
        return _tell(error)
    except KeyboardInterrupt:
        return _tell(Interrupted("interrupted; the last good result stays as it was"))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _tell(_from_system(error))
    finally:
        process.reap(own=True)
    return code


def _from_system(error: OSError) -> ApplianceError:
    """What the operating system refused (a full disk, a folder that is not ours), in one line."""
    what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    wrapped = ApplianceError(what)
    if error.errno == errno.ENOSPC:
        wrapped.hint = f"the disk is full: {DISK_FULL}"
    return wrapped


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _tell(error: ApplianceError, *, plain: bool = False) -> int:
    if plain:
        print(error.message, file=sys.stderr)
    else:
        log.error(error.message)
    if error.hint:
        log.info(f"  next: {error.hint}")
    return error.exit_code


def entry_point() -> None:
    """The console script. Threads of libraries can hold or crash an interpreter that ends: leave at once."""
    gc.freeze()  # modules stay; to look through them again and again took a tenth of a small build's time
    gc.set_threshold(200_000, 20, 20)
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
