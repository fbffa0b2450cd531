"""``conda-appliance disc``: discs made from an image, and discs looked at, verified, written to a stick."""

from __future__ import annotations

import argparse
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conda_appliance import cli_options, disc, discs, log
from conda_appliance.errors import UsageError

_TEXT = """\
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


def add(verbs: Any) -> None:
    """The verb ``disc`` and what follows it: the kind before the image, though people say it after (`cli.main`)."""
    top = cli_options.parser(
        verbs,
        "disc",
        _help,
        "make an ISO 9660 disc for machines without a network, or read, verify, write one",
        _TEXT,
        usage="conda-appliance disc IMAGE KIND …  |  disc ls FILE  |  disc verify FILE  |  disc write FILE DEVICE",
    )
    kinds = top.add_subparsers(dest="disc", metavar="KIND", required=True)

    def kind(
        name: str, run: Callable[[argparse.Namespace], int], usage: str, brief: str, text: str
    ) -> argparse.ArgumentParser:
        return cli_options.parser(kinds, name, run, brief, text, usage=f"conda-appliance disc {usage}")

    one = kind(
        "payload",
        _payload,
        "IMAGE payload [--channel] [--to DIR]",
        "the disc that installs the environments and services on a machine that already runs Linux",
        "`sh install.sh` on it installs, upgrades, rolls back, checks and uninstalls; it needs a shell, coreutils and\n"
        "tar there, no network and no Python. The same lock and files give the same bytes.\n\n"
        "examples: conda-appliance disc images/hello.yaml payload\n"
        "          conda-appliance disc hello payload --channel      as its latest build was locked",
    )
    cli_options.image(one)
    _place(one)
    one.add_argument(
        "--channel",
        action="store_true",
        help="carry the packages too, as a conda channel that needs no network",
    )
    cli_options.platform(one)
    one.add_argument("--offline", action="store_true", help="take everything from the cache, use no network")

    one = kind(
        "userspace",
        _userspace,
        "IMAGE userspace [--to DIR]",
        "the disc that the environments and services run from on a machine that already runs Linux",
        "`sh mount.sh` on it mounts the environments read-only at their prefix, now and whenever the disc is put in,\n"
        "and has systemd run the services while it is there; `--undo` takes that away again. `disc.userspace` of the\n"
        "definition says in which form they lie there. The same lock and files give the same bytes.\n\n"
        "example: conda-appliance disc images/hello.yaml userspace",
    )
    cli_options.image(one)
    _place(one)
    cli_options.platform(one)
    one.add_argument("--offline", action="store_true", help="take everything from the cache, use no network")

    one = kind(
        "live",
        _live,
        "IMAGE live [--to DIR]",
        "the disc that starts the appliance, from a CD or a stick, by BIOS or UEFI",
        "Nothing is written to the machine's disks: changes are kept in memory, or in a partition labelled\n"
        "'appliance-data' where there is one. Its menu starts it from memory (the disc can be taken out),\n"
        "verifies the disc first, or forgets what was kept. Needs a Debian base; for a stick, one with\n"
        "`kernel: generic`.\n\n"
        "example: conda-appliance disc images/hello.yaml live",
    )
    cli_options.image(one)
    _place(one)
    one.add_argument("--offline", action="store_true", help="take everything from the cache, use no network")

    one = kind(
        "installer",
        _installer,
        "IMAGE installer [--to DIR]",
        "the disc that installs the appliance on a disk of the machine that it starts",
        "It shows the machine's disks on screen and serial port, asks, writes the image, reads it back, and\n"
        "starts what it installed. A disk that holds anything is only written to when it is named: by whoever\n"
        "is asked, or by `installer:` in the definition, which can also have it done without a question. A\n"
        "definition is built and checked first; a result is taken as it is.\n\n"
        "examples: conda-appliance disc images/hello.yaml installer\n"
        "          conda-appliance disc hello installer              of its latest result",
    )
    cli_options.image(one)
    _place(one)
    one.add_argument("--offline", action="store_true", help="take everything from the cache, use no network")

    one = kind(
        "seed",
        _seed,
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
    cli_options.image(one)
    one.add_argument(
        "batch", type=Path, metavar="FILE", help="the machines: .yaml or .csv"
    ).complete = cli_options.FILE  # type: ignore[attr-defined]
    _place(one)

    one = kind(
        "ls",
        _ls,
        "ls FILE [--json]",
        "list what is on a disc",
        "By its Rock Ridge names, with modes and sizes in bytes.\n\nexample: conda-appliance disc ls seed.iso",
    )
    _file(one, "a disc: a file or a device")
    cli_options.json(one)

    one = kind(
        "verify",
        _verify,
        "verify FILE-OR-DEVICE",
        "read every file of a disc and compare it with its SHA256SUMS",
        "Exit 3, with its name, for a file that is not what it was.\n\n"
        "examples: conda-appliance disc verify out/hello/discs/hello-1.0.0-payload.iso\n"
        "          conda-appliance disc verify /dev/sr0",
    )
    _file(one, "a disc: a file or a device")

    one = kind(
        "write",
        _write,
        "write FILE DEVICE [--data] [--erase DEVICE]",
        "write a disc to a stick, and read it back",
        "Everything on DEVICE is lost. It must be a whole disk that nothing uses: one that is mounted, is swap space,\n"
        "is part of a RAID, LVM or encrypted disk, or that this system runs from is refused. It asks for the\n"
        "name of the device once more; scripts say it with --erase.\n\n"
        "example: lsblk, then: conda-appliance disc write hello-1.0.0-payload.iso /dev/sdb --erase /dev/sdb",
    )
    _file(one, "a disc")
    one.add_argument("device", type=Path, metavar="DEVICE", help="a whole disk, such as /dev/sdb")
    one.add_argument(
        "--data", action="store_true", help="a live disc keeps what is written: in a partition behind it"
    )
    one.add_argument("--erase", metavar="DEVICE", help="the device once more: it may be erased, do not ask")


def _file(one: argparse.ArgumentParser, text: str) -> None:
    one.add_argument("file", type=Path, metavar="FILE", help=text).complete = cli_options.FILE  # type: ignore[attr-defined]


def _place(one: argparse.ArgumentParser) -> None:
    cli_options.out(one)
    one.add_argument("--to", type=Path, metavar="DIR", help="where (default: out/NAME/discs)")


def _help(_args: argparse.Namespace) -> int:
    raise UsageError("say what kind of disc, or what to do with one", hint="conda-appliance disc --help")


def _payload(args: argparse.Namespace) -> int:
    made = discs.payload(
        args.image,
        out=args.out,
        to=args.to,
        offline=args.offline,
        channel=args.channel,
        platform=args.platform,
    )
    print(made)
    return 0


def _userspace(args: argparse.Namespace) -> int:
    made = discs.userspace(args.image, out=args.out, to=args.to, offline=args.offline, platform=args.platform)
    print(made)
    return 0


def _live(args: argparse.Namespace) -> int:
    print(discs.live(args.image, out=args.out, to=args.to, offline=args.offline))
    return 0


def _installer(args: argparse.Namespace) -> int:
    print(discs.installer(args.image, out=args.out, to=args.to, offline=args.offline))
    return 0


def _seed(args: argparse.Namespace) -> int:
    for path in discs.seeds(args.image, args.batch, out=args.out, to=args.to):
        print(path)
    return 0


def _ls(args: argparse.Namespace) -> int:
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
        cli_options.say({"volume": found.volume, "entries": entries})
        return 0
    log.info(f"{args.file}: {found.volume}")
    for one in found.entries:
        to = f" -> {one.target}" if one.target else ""
        print(f"{stat.filemode(one.mode)} {one.size:>12} {one.path}{to}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    discs.verify(args.file)
    return 0


def _write(args: argparse.Namespace) -> int:
    ask = _ask if sys.stdin.isatty() else None
    discs.write(args.file, args.device, erase=args.erase, ask=ask, data=args.data)
    return 0


def _ask(question: str) -> str:
    """A question on stderr, as everything but results; the answer from the terminal."""
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline()
