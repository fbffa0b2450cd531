"""The command line: verbs, exit codes, what goes to stdout and what to stderr."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import shtab

import conda_appliance
from conda_appliance import (
    build,
    definition,
    lock,
    log,
    manifest,
    process,
    project,
    session,
)
from conda_appliance.errors import ApplianceError, DefinitionError, Interrupted, Problem

_EXIT_CODES = """\
exit codes:
  0 done                                3 lock missing or stale, or a hash does not match
  1 build failed                        4 a program of the host is missing
  2 usage or a definition is wrong      5 built, but a check failed       130 interrupted
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
        made = verbs.add_parser(
            name,
            help=brief,
            description=f"{brief[0].upper()}{brief[1:]}.\n\n{text}",
            epilog=_EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.set_defaults(run=run)
        return made

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
        "log, journal) is kept.",
    )
    _image(one)
    _out(one)
    _machine(one)
    one.add_argument("--report", type=Path, metavar="DIR", help="where (default: out/NAME/check)")
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
    results = []
    for path in args.files:
        if args.lock:
            build.ensure_lock(path)
        results.append(
            build.build(
                path,
                out=args.out,
                builder=args.builder,
                offline=args.offline,
                check=not args.no_check,
                keep_failed=args.keep_failed,
                force=args.force,
            )
        )
    if args.json:
        _say([{"folder": str(r.folder), **r.manifest.model_dump(mode="json")} for r in results])
    else:
        for result in results:
            print(result.folder)
    return 0


def _boot(args: argparse.Namespace) -> int:
    session.boot(args.image, out=args.out, firmware=args.firmware, memory=args.memory, port=args.port)
    return 0


def _ssh(args: argparse.Namespace) -> int:
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    return session.ssh(args.name, command)


def _check(args: argparse.Namespace) -> int:
    report = build.check(
        args.image, out=args.out, firmware=args.firmware, memory=args.memory, report=args.report
    )
    if args.json:
        _say(report)
    return 0


def _clean(args: argparse.Namespace) -> int:
    for path in build.clean(args.out, caches=not args.leftovers, results=args.results):
        print(path)
    return 0


# --- the process ----------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code. Errors are told here and nowhere else."""
    os.environ[process.MARK] = process.mark()
    # SIGINT too: a shell that starts us in the background has it ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        args = parser().parse_args(argv)
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
    if error.errno == 28:  # ENOSPC
        wrapped.hint = (
            "the disk is full: free space, `conda-appliance clean`, or use --out and CONDA_APPLIANCE_CACHE"
        )
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
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
