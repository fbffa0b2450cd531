"""The verbs that compare what was made: verify, diff."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from conda_appliance import changes, cli_options, diff, verify


def add(verbs: Any) -> None:
    """Their part of the command line."""
    verb = partial(cli_options.parser, verbs)

    one = verb(
        "verify",
        _verify,
        "compare a result with its manifest, or with what its lock gives today",
        "Reads every artifact and compares it with manifest.json. With --rebuild it is built anew from the result's\n"
        "lock, with nothing of the cache but the verified downloads, and must have the same bytes; a file that\n"
        "differs is named. Results of the rootfs builder are reproducible; Packer's are not. --files opens\n"
        "artifacts of any form, a disc too, and tells what in their environments is changed, missing or extra.\n"
        "Exit 3 on a difference.\n\n"
        "example: conda-appliance verify out/hello/discs/hello-1.0.0-payload.iso --files",
    )
    cli_options.image(one)
    cli_options.out(one)
    one.add_argument(
        "--files",
        action="store_true",
        help="open every artifact (or the one that IMAGE is) and compare the environments in it, file by file, with "
        "what the lock gives",
    )
    one.add_argument("--rebuild", action="store_true", help="build it anew and compare the bytes")
    cli_options.platform(one)
    one.add_argument("--offline", action="store_true", help="take all downloads from the cache")
    cli_options.json(one)

    one = verb(
        "diff",
        _diff,
        "tell what changed between two locks or two results, as a changelog",
        "A and B are locks, definitions (their locks are meant), names under out/ or results' folders. Added, removed\n"
        "and updated packages of the system and each environment, wheels, programs; of two results the artifacts too,\n"
        "and with --files every path of their root file systems. Exit 0 whether or not anything changed.\n\n"
        "examples: conda-appliance diff out/hello/b44053c1dca0 hello\n"
        "          git show HEAD~1:images/app.lock > old.lock; conda-appliance diff old.lock images/app.lock",
    )
    one.add_argument("before", metavar="A", help="from this")
    one.add_argument("after", metavar="B", help="to this")
    cli_options.out(one)
    cli_options.platform(one)
    one.add_argument("--files", action="store_true", help="compare the files of two results' disks too")
    one.add_argument("--markdown", action="store_true", help="as Markdown")
    cli_options.json(one)


def _verify(args: argparse.Namespace) -> int:
    if args.files:
        answer: dict[str, object] = {
            "files": verify.contents(args.image, out=args.out, offline=args.offline, platform=args.platform)
        }
    elif args.rebuild:
        answer = verify.rebuild(args.image, out=args.out, offline=args.offline, platform=args.platform)
    else:
        written = verify.verify(args.image, out=args.out, platform=args.platform)
        answer = {"artifacts": {record.file: record.sha256 for record in written.artifacts}}
    if args.json:
        cli_options.say(answer)
    return 0


def _diff(args: argparse.Namespace) -> int:
    found = diff.diff(args.before, args.after, out=args.out, files=args.files, platform=args.platform)
    if args.json:
        cli_options.say(changes.as_dict(found))
    else:
        print(changes.text(found, markdown=args.markdown), end="")
    return 0
