"""The verbs that tidy up: cache, clean."""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import Any

from conda_appliance import build, cache, cli_options, log, resources
from conda_appliance.errors import HashMismatch, UsageError
from conda_appliance.fields import parse_size


def add(verbs: Any) -> None:
    """Their part of the command line."""
    verb = partial(cli_options.parser, verbs)

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
    one.add_argument("--size", type=parse_size, metavar="SIZE", help="prune: leave this much, e.g. 5GiB")
    one.add_argument("--age", type=float, metavar="DAYS", help="prune: remove what was not used for so long")
    cli_options.json(one)

    one = verb(
        "clean",
        _clean,
        "remove caches and what dead runs left",
        "Never touches a result that passed its checks, unless asked with --results.",
    )
    cli_options.out(one)
    one.add_argument(
        "--leftovers", action="store_true", help="keep the caches: leftovers and failed builds only"
    )
    one.add_argument("--results", action="store_true", help="remove all results too")


def _cache(args: argparse.Namespace) -> int:
    if args.action != "prune" and (args.size is not None or args.age is not None):
        raise UsageError("--size and --age belong to `cache prune`")
    if args.action == "prune" and args.size is None and args.age is None:
        raise UsageError(
            "say what may go: --size SIZE leaves that much, --age DAYS removes what was not used so long"
        )
    store = cache.layer_store()
    if args.action == "verify":
        damaged = store.verify()
        for line in damaged:
            log.error(line)
        if args.json:
            cli_options.say({"damaged": damaged})
        else:
            log.info(f"{len(store.entries())} layers are as they were made, {len(damaged)} are not")
        return HashMismatch.exit_code if damaged else 0
    entries = (
        store.entries()
        if args.action == "list"
        else store.prune(size=args.size, age=None if args.age is None else args.age * 86400)
    )
    if args.json:
        cli_options.say(
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
