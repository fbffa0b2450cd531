"""``conda-appliance sbom``, ``licences`` and ``cves``: what an appliance is made of, and what is known of that."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conda_appliance import build, cli_options, cyclonedx, licences, log, osv, resources, results, spdx
from conda_appliance.bill import Bill
from conda_appliance.errors import CheckFailed

_WRITERS = {"cyclonedx": cyclonedx.write, "spdx": spdx.write}


def add(verbs: Any) -> None:
    """The three verbs."""

    def verb(
        name: str, run: Callable[[argparse.Namespace], int], brief: str, text: str
    ) -> argparse.ArgumentParser:
        one = cli_options.parser(verbs, name, run, brief, text)
        cli_options.image(one)
        cli_options.out(one)
        one.add_argument(
            "--offline", action="store_true", help="take everything from the cache, use no network"
        )
        cli_options.platform(one)
        return one

    one = verb(
        "sbom",
        _sbom,
        "list what an appliance is made of, as CycloneDX 1.6 or SPDX 2.3",
        "Debian's packages, conda's, wheels, programs and files: purl, licence, SHA-256, supplier and origin of each.\n"
        "A build writes both beside the image and the first into it (/etc/conda-appliance/sbom.cdx.json). The same\n"
        "lock gives the same bytes.\n\n"
        "example: conda-appliance sbom images/hello.yaml --format spdx --to hello.spdx.json",
    )
    one.add_argument("--format", choices=[*_WRITERS], default="cyclonedx", help="default: cyclonedx")
    _to(one)

    one = verb(
        "licences",
        _licences,
        "report under which licences the packages of an appliance are",
        "What has no known licence comes first, then by licence, each package with its text's place.\n\n"
        "example: conda-appliance licences hello --html --to licences.html",
    )
    one.add_argument("--html", action="store_true", help="as a page")
    _to(one)

    one = verb(
        "cves",
        _cves,
        "tell which known vulnerabilities the packages of an appliance have",
        "Compares the bill of materials with a dump of OSV's database, without a network: an all.zip as\n"
        "https://osv-vulnerabilities.storage.googleapis.com/Debian:13/all.zip and …/PyPI/all.zip, a record, or a\n"
        "folder of them. Conda packages are looked up by the name of their PyPI project, which is said. Exit 5 when\n"
        "there are any.\n\n"
        "example: conda-appliance cves hello --osv dumps/",
    )
    one.add_argument(
        "--osv", type=Path, required=True, metavar="PATH", help="the dump"
    ).complete = cli_options.FILE  # type: ignore[attr-defined]
    cli_options.json(one)


def _to(one: argparse.ArgumentParser) -> None:
    one.add_argument("--to", type=Path, metavar="FILE", help="write it there instead of printing it")


def _bill(args: argparse.Namespace) -> Bill:
    path, locked = results.source(args.image, args.out, args.platform)
    return build.bill_of(path, locked, offline=args.offline, platform=args.platform)


def _give(args: argparse.Namespace, text: str) -> int:
    if args.to:
        resources.write(args.to, text)
        print(args.to)
    else:
        print(text, end="")
    return 0


def _sbom(args: argparse.Namespace) -> int:
    return _give(args, _WRITERS[args.format](_bill(args)))


def _licences(args: argparse.Namespace) -> int:
    found = _bill(args)
    return _give(args, licences.html(found) if args.html else licences.text(found))


def _cves(args: argparse.Namespace) -> int:
    bill = _bill(args)
    with log.step(f"Compare with {args.osv}") as step:
        found = osv.find(bill, args.osv)
        step.note(f"{len(found)} known vulnerabilities")
    if args.json:
        cli_options.say(
            [
                {
                    "id": one.id,
                    "aliases": one.aliases,
                    "summary": one.summary,
                    "package": one.component.name,
                    "version": one.component.version,
                    "kind": one.component.kind,
                    "part": one.component.part,
                    "fixed": one.fixed or None,
                    "by_name": one.by_name,
                }
                for one in found
            ]
        )
    else:
        for one in found:
            fixed = f"fixed in {one.fixed}" if one.fixed else "not fixed"
            guess = "; by the name of its PyPI project" if one.by_name else ""
            about = one.component
            print(
                f"{one.name}  {about.name} {about.version} ({about.kind}, {about.part}): {fixed}{guess}  {one.summary}"
            )
    return CheckFailed.exit_code if found else 0
