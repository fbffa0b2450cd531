"""What all verbs of the command line share: how a parser looks, the options that mean the same everywhere."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conda_appliance import lazy, manifest
from conda_appliance.fields import parse_size
from conda_appliance.platforms import PLATFORMS

if TYPE_CHECKING:
    import shtab
else:
    shtab = lazy.module("shtab")

#: An argument's ``complete`` that has shtab complete files' names.
FILE = "file"
EXIT_CODES = """\
exit codes:
  0 done                                3 lock missing or stale, or a hash does not match
  1 build failed                        4 a program of the host is missing
  2 usage or a definition is wrong      5 built, but a check failed       130 interrupted
"""


def parser(
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
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.set_defaults(run=run)
    return made


class PrintCompletion(argparse.Action):
    """``--print-completion SHELL``: shtab's script of a parser, as `shtab.add_argument_to` gives it."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if values not in shtab.SUPPORTED_SHELLS:
            parser.error(f"there is no completion for {values}, but for {', '.join(shtab.SUPPORTED_SHELLS)}")
        print(shtab.complete(parser, values))
        parser.exit()


def files(one: argparse.ArgumentParser, *, many: bool = False) -> None:
    action = one.add_argument(
        "files" if many else "file",
        type=Path,
        nargs="+" if many else None,
        metavar="FILE",
        help="a definition, e.g. images/hello.yaml",
    )
    action.complete = FILE  # type: ignore[attr-defined]


def image(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "image", metavar="IMAGE", help="a definition, a name under out/, a build's folder, or a disk file"
    )


def machine(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--firmware", choices=("bios", "uefi"), help="default: the first that the definition names"
    )
    one.add_argument("--memory", type=parse_size, metavar="SIZE", help="default: 1GiB")


def platform(one: argparse.ArgumentParser, what: str = "default: the definition's first") -> None:
    one.add_argument(
        "--platform", choices=(*PLATFORMS,), help=f"of several that a definition is for ({what})"
    )


def out(one: argparse.ArgumentParser) -> None:
    one.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="results (default: out)")


def json(one: argparse.ArgumentParser) -> None:
    one.add_argument("--json", action="store_true", help="print the answer as JSON")


def port(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: 1 to 65535")
    return int(text)


def say(value: Any) -> None:
    print(manifest.as_json(value))
