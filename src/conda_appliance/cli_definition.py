"""The verbs that make, read and lock definitions: init, validate, show, schema, formats, lock, fetch."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from conda_appliance import (
    cli_options,
    definition,
    formats,
    lock,
    lockfiles,
    locking,
    log,
    manifest,
    project,
    resources,
    schema,
    yamlfile,
)
from conda_appliance.errors import DefinitionError, Problem, UsageError


def add(verbs: Any) -> None:
    """Their part of the command line."""
    verb = partial(cli_options.parser, verbs)

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
    cli_options.files(one, many=True)
    cli_options.json(one)

    one = verb(
        "show", _show, "show a definition with all its defaults", "example: conda-appliance show hello.yaml"
    )
    cli_options.files(one)
    cli_options.json(one)

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
    cli_options.json(one)

    one = verb(
        "lock",
        _lock,
        "pin every package of a definition by version and SHA-256",
        "Writes NAME.lock beside the definition. A lock that still answers its definition is kept as it is;\n"
        "--upgrade resolves again and takes what is newest. Needs the network (or a mirror, or folder channels).",
    )
    cli_options.files(one)
    either = one.add_mutually_exclusive_group()
    either.add_argument("--upgrade", action="store_true", help="resolve again although the lock is fresh")
    either.add_argument(
        "--update",
        nargs="+",
        default=(),
        metavar="NAME",
        help="move these packages, and no other, and tell what moved; deb:NAME is Debian's where conda has it too",
    )
    either.add_argument(
        "--export",
        choices=lockfiles.FORMATS,
        help="print an environment of the lock as another tool's: pixi.lock, conda-lock.yml, or an @EXPLICIT file",
    )
    one.add_argument("--environment", default="base", metavar="NAME", help="of --export (default: base)")
    one.add_argument("--to", type=Path, metavar="FILE", help="of --export: write it there")
    cli_options.platform(one, "--update, --export; default: its first")
    cli_options.json(one)

    one = verb(
        "fetch",
        _fetch,
        "download what a lock names, verified, so that a build needs no network",
        "Every file is checked against the lock's SHA-256, those already in the cache too.",
    )
    cli_options.files(one)
    one.add_argument("--offline", action="store_true", help="only verify what is in the cache")
    cli_options.platform(one, "default: all of them")
    cli_options.json(one)


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
        cli_options.say([vars(problem) for problem in problems])
    else:
        for problem in problems:
            print(problem)
    return DefinitionError.exit_code if problems else 0


def _show(args: argparse.Namespace) -> int:
    image = definition.load_image(args.file)
    value = image.model_dump(mode="json", by_alias=True)
    if args.json:
        cli_options.say(value)
    else:
        print(yamlfile.as_yaml(value), end="")
    return 0


def _schema(args: argparse.Namespace) -> int:
    if args.markdown:
        print(schema.reference(), end="")
    else:
        cli_options.say(schema.schema())
    return 0


def _formats(args: argparse.Namespace) -> int:
    if args.json:
        cli_options.say([formats.as_dict(form) for form in formats.FORMS])
    else:
        print(formats.reference() if args.markdown else formats.text(), end="" if args.markdown else "\n")
    return 0


def _lock(args: argparse.Namespace) -> int:
    if args.to and not args.export:
        raise UsageError("--to belongs to `lock --export`")
    if args.export:
        text = locking.export(args.file, args.export, args.environment, platform=args.platform)
        if args.to:
            resources.write(args.to, text)
            print(args.to)
        else:
            print(text, end="")
        return 0
    if args.update:
        made, changed = [locking.update(args.file, args.update, platform=args.platform)], True
    elif args.platform:
        raise UsageError("--platform belongs to --update and --export: a lock answers for all platforms")
    else:
        made, changed = locking.ensure(args.file, upgrade=args.upgrade)
    path = lock.path_for(args.file)
    if args.json:
        counts = manifest.package_counts(made[0])
        each = {one.platform: manifest.package_counts(one) for one in made} if len(made) > 1 else {}
        cli_options.say(
            {"lock": str(path), "changed": changed, **counts, **({"platforms": each} if each else {})}
        )
    else:
        print(path)
    return 0


def _fetch(args: argparse.Namespace) -> int:
    inputs = locking.fetch(args.file, offline=args.offline, platform=args.platform)
    if args.json:
        cli_options.say({digest: str(path) for digest, path in inputs.files.items()})
    return 0
