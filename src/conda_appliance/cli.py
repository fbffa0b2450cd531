"""The command line: verbs, exit codes, what goes to stdout and what to stderr."""

from __future__ import annotations

import argparse
import errno
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import conda_appliance
from conda_appliance import (
    batch,
    build,
    cache,
    changes,
    cli_bill,
    cli_disc,
    cli_options,
    definition,
    diff,
    formats,
    lock,
    lockfiles,
    locking,
    log,
    manifest,
    namespace,
    network,
    process,
    project,
    redact,
    resources,
    schema,
    session,
    verify,
    yamlfile,
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
from conda_appliance.fields import parse_size

#: The verbs that make or remove trees of files with other owners than ours.
_AS_ROOT = ("lock", "build", "render", "verify", "cache", "clean", "sbom", "licences", "cves", "diff")

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
        epilog=cli_options.EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"conda-appliance {conda_appliance.__version__}")
    top.add_argument(
        "--print-completion",
        action=cli_options.PrintCompletion,
        metavar="SHELL",
        help="print the completion script of a shell: bash, zsh, tcsh",
    )
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(
        name: str, run: Callable[[argparse.Namespace], int], brief: str, text: str
    ) -> argparse.ArgumentParser:
        return cli_options.parser(verbs, name, run, brief, text)

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

    one = verb(
        "disc",
        cli_disc.help_,
        "make an ISO 9660 disc for machines without a network, or read, verify, write one",
        cli_disc.TEXT,
    )
    one.usage = (
        "conda-appliance disc IMAGE KIND …  |  disc ls FILE  |  disc verify FILE  |  disc write FILE DEVICE"
    )
    cli_disc.add(one.add_subparsers(dest="disc", metavar="KIND", required=True))

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

    cli_bill.add(verbs)

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
    return top


# --- verbs ----------------------------------------------------------------------------------------


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


def _render(args: argparse.Namespace) -> int:
    print(build.render(args.file, out=args.out, to=args.to, offline=args.offline, platform=args.platform))
    return 0


def _build(args: argparse.Namespace) -> int:
    for path in args.files:
        definition.load_image(path)  # every mistake before the first minute of the first build
    if args.lock:
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


def _catalog(args: argparse.Namespace) -> int:
    print(build.publish(args.image, out=args.out, to=args.to, url=args.url))
    return 0


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


# --- the process ----------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code. Errors are told here and nowhere else."""
    os.environ[process.MARK] = process.mark()
    os.umask(0o022)  # what is made is for all to read, as images are; keys have modes of their own
    # SIGINT too: a shell that starts us in the background has it ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        with redact.guarded():
            return _run(sys.argv[1:] if argv is None else argv)
    finally:
        process.reap(own=True)


def _run(words: Sequence[str]) -> int:
    try:
        network.keep_proxy_secrets()
        args = parser().parse_args(cli_disc.kind_first(words))
        if args.verb in _AS_ROOT or getattr(args, "disc", "") in cli_disc.AS_ROOT:
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
