"""The command line: verbs, exit codes, what goes to stdout and what to stderr."""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import conda_appliance
from conda_appliance import cli_options, errors, log, namespace, network, redact, runs
from conda_appliance.errors import ApplianceError, DefinitionError, Interrupted

#: All verbs in the order of the help, by the module that knows them. It is loaded when one of its verbs is asked for:
#: all of them together take a third longer to load, which is most of what a build with nothing to do takes.
VERBS = {
    "cli_definition": ("init", "validate", "show", "schema", "formats", "lock", "fetch"),
    "cli_image": ("render", "build", "boot", "ssh", "check", "catalog"),
    "cli_disc": ("disc",),
    "cli_result": ("verify", "diff"),
    "cli_bill": ("sbom", "licences", "cves"),
    "cli_cache": ("cache", "clean"),
}

#: The verbs that make or remove trees of files with other owners than ours.
_AS_ROOT = ("lock", "build", "render", "verify", "cache", "clean", "sbom", "licences", "cves", "diff")
#: The kinds of discs that do so, and the others that ``disc IMAGE`` makes.
_DISCS_AS_ROOT = ("payload", "userspace", "live", "installer")
_DISCS = (*_DISCS_AS_ROOT, "seed")

_MAIN = """\
From one definition to a machine:

  conda-appliance init myapp                     write an example to start from
  conda-appliance lock images/myapp.yaml         pin every package by SHA-256
  conda-appliance build images/myapp.yaml        make the image, boot it, check it
  conda-appliance boot myapp                     use it; Ctrl-C ends it

Results go to stdout, progress to stderr. `conda-appliance VERB --help` tells more.
"""


def parser(verb: str = "") -> argparse.ArgumentParser:
    """The whole command line, from which help and shell completion are made; or as much of it as ``verb`` needs."""
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
    known = any(verb in names for names in VERBS.values())
    for module, names in VERBS.items():
        if verb in names or not known:
            importlib.import_module(f"conda_appliance.{module}").add(verbs)
    return top


# --- the process ----------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code. Errors are told here and nowhere else."""
    os.environ[runs.MARK] = runs.mark()
    os.umask(0o022)  # what is made is for all to read, as images are; keys have modes of their own
    # SIGINT too: a shell that starts us in the background has it ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        with redact.guarded():
            return _run(sys.argv[1:] if argv is None else argv)
    finally:
        runs.reap(own=True)


def _run(words: Sequence[str]) -> int:
    try:
        network.keep_proxy_secrets()
        words = _kind_first(words)
        args = parser(words[0] if words else "").parse_args(words)
        if args.verb in _AS_ROOT or getattr(args, "disc", "") in _DISCS_AS_ROOT:
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
        return _tell(errors.of_system(error))
    return code


def _kind_first(words: Sequence[str]) -> Sequence[str]:
    """``disc IMAGE KIND …`` as argparse takes it, ``disc KIND IMAGE …``; anything else as it is."""
    if len(words) > 2 and words[0] == "disc" and words[2] in _DISCS and words[1] not in _DISCS:
        return [words[0], words[2], words[1], *words[3:]]
    return words


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
    gc.set_threshold(1_000_000, 20, 20)
    gc.enable()
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
