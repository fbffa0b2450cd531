#!/usr/bin/env python3
"""One benchmark: ours and every peer make the same machines, in pairs; figures as JSON, a page and a plot from them.

    python bench/run.py                          everything (hours on two cores); `make bench`
    python bench/run.py --peers vmdb2 mkosi      some peers
    python bench/run.py --scenarios environment  some scenarios
    python bench/run.py --prepare                downloads and the toolbox only: all that needs the network
    python bench/run.py --report                 the page and the plot again, from the figures that are there

Needs root and a Debian host with what `make host` installs. Everything is made below --work, and stays there.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import archive
import contenders
import report
import results
import toolbox
from conda_appliance import layers, process, resources, runs, sources
from contenders import Contender, Failed, Ours, Peer
from inputs import HERE, Inputs, Variant, Workspace

#: Scenarios, in the order they run, and what each means.
SCENARIOS = {
    "cold": "nothing is there but the downloaded packages",
    "environment": "the environment changed by one small package",
    "file": "one file of the application changed",
    "unchanged": "the same command again",
    "second": "another machine from the same base: another name, environment and application",
}
#: Bytes that the next peer may need; where fewer are free, what was put away is removed before its turn.
ROOM = 20 << 30
#: What `debian_alone` measures, as the page calls it.
DEBIAN = "Debian alone"
#: Only ours makes many machines with one command; compared with as many exports of one disk.
SCALE = 20

#: The first one is what ratios are of: like the peers' disks, its is not compressed.
VARIANTS = {
    "ours": (Variant(disk={"compression": "none"}), "qcow2, not compressed, GPT, GRUB for BIOS and UEFI"),
    "ours-zstd": (Variant(disk={"compression": "zstd"}), "the same, qcow2 compressed with zstd"),
    "ours-split": (
        Variant(disk={"compression": "none", "layout": "split"}),
        "the same, not compressed, the environment in a read-only partition of its own",
    ),
}


class Bench:
    """One run: contenders, and numbers that make each environment and application one that was never there."""

    def __init__(self, workspace: Workspace, record: results.Record) -> None:
        self.workspace = workspace
        self.record = record
        #: What each contender made last under the name "bench".
        self._settled: dict[str, Inputs] = {}

    def changed(self, now: Inputs, *, environment: bool, application: bool, name: str = "bench") -> Inputs:
        """The next machine: what is asked to change gets a new number."""
        return Inputs(
            name=name,
            environment=self.workspace.next_number() if environment else now.environment,
            application=self.workspace.next_number() if application else now.application,
        )

    def pair(self, scenario: str, number: int, ours: Sequence[Contender], peer: Contender) -> None:
        """Ours and one peer, one directly after the other; who comes first alternates. Raises Failed."""
        order = [*ours, peer] if number % 2 == 0 else [peer, *ours]
        for one in order:
            outcome = self._measured(scenario, one)
            self.record.add(scenario, f"{peer.name}-{number}", one.name, outcome)

    def _measured(self, scenario: str, one: Contender) -> contenders.Outcome:
        now = self._settled.get(one.name, Inputs(name="bench", environment=0, application=0))
        if scenario == "cold":
            one.reset()
            if isinstance(one, Ours):  # its variants share a cache
                self._settled = {name: at for name, at in self._settled.items() if name not in VARIANTS}
            self.workspace.rest()  # whoever ran before removed files of its own
        inputs = self.changed(
            now,
            environment=scenario in ("environment", "second"),
            application=scenario in ("file", "second"),
            name="second" if scenario == "second" else "bench",
        )
        outcome = one.build(inputs)
        if scenario != "second":
            self._settled[one.name] = inputs
        return outcome

    def settle(self, one: Contender) -> None:
        """Have ``one`` made a machine, unmeasured, so that the next has something to change."""
        if one.name not in self._settled:
            inputs = Inputs(name="bench", environment=0, application=0)
            one.build(inputs)
            self._settled[one.name] = inputs


def compare(
    bench: Bench, ours: list[Ours], peers: list[Peer], wanted: Sequence[str], rounds: int, cold: int
) -> None:
    """All scenarios of all pairs. A peer that fails is left out from then on, and the record says why.

    Nobody's figures are of the first run of all: it finds nothing in the page cache, and in a virtual machine it is the
    first to touch much of its memory.
    """
    if "cold" in wanted and ours:
        ours[0].reset()
        ours[0].build(Inputs(name="bench", environment=0, application=0))
    for peer in peers:
        try:
            for scenario in wanted:
                for number in range(cold if scenario == "cold" else rounds):
                    everyone: list[Contender] = [*ours, peer]
                    for one in everyone:
                        if scenario != "cold":
                            bench.settle(one)
                    # Cold says nothing about layouts: the plain one alone.
                    bench.pair(scenario, number, ours[:1] if scenario == "cold" else ours, peer)
        except Failed as error:
            bench.record.fail(peer.name, str(error))
        if shutil.disk_usage(bench.workspace.root).free < ROOM:
            bench.workspace.tidy()


def debian_alone(bench: Bench, rounds: int) -> None:
    """What is no builder's own in a cold start: the packages of our machine, installed."""
    workspace = bench.workspace
    folder = workspace.root / "state/debian"
    for number in range(rounds):
        workspace.put_away(folder)
        words = [workspace.base, workspace.project / "cache", folder]
        figures = contenders.metered(
            [sys.executable, str(HERE / "debian_alone.py"), *map(str, words)],
            at=workspace.root / "logs",
            name="debian",
        )
        size = layers.size_of(folder / "tree")
        outcome = contenders.Outcome(figures=figures, size=size, allocated=size)
        bench.record.add("cold", f"debian-{number}", DEBIAN, outcome)
    workspace.put_away(folder)


def scale(bench: Bench, one: Ours, rounds: int) -> None:
    """`SCALE` machines that differ in their application, against as many exports of one of them."""
    for number in range(rounds):
        base = bench.changed(
            Inputs(name="scale", environment=0, application=0), environment=True, application=False
        )
        definitions = []
        for index in range(SCALE):
            app = bench.workspace.images / f"app{index}"
            shutil.rmtree(app, ignore_errors=True)
            shutil.copytree(bench.workspace.images / "app", app)
            with (app / "bench.py").open("a", encoding="utf-8") as file:
                file.write(f"# machine {index}, round {number}\n")
            inputs = replace(base, name=f"scale{index:02}")
            definitions.append(bench.workspace.write_definition(inputs, one.variant, app=f"{app.name}/"))
        bench.record.add("scale", f"scale-{number}", one.name, one.build_all(definitions))
        bench.record.add("scale", f"scale-{number}", "exports", _exports(bench.workspace, one, definitions))
        resources.remove(one.out)


def _exports(workspace: Workspace, one: Ours, definitions: Sequence[Path]) -> contenders.Outcome:
    """As many exports as machines, and nothing else: what any builder must at least do for them."""
    source = one.images(definitions[0].stem)[0]
    folder = workspace.root / "state/exports"
    resources.remove(folder)
    folder.mkdir(parents=True)
    disk = folder / "disk.raw"
    process.run(["qemu-img", "convert", "-O", "raw", source, disk])
    convert = 'qemu-img convert -O qcow2 "$0" "$1/$i.qcow2"'
    script = f"for i in $(seq {len(definitions)}); do {convert}; done"
    figures = contenders.metered(
        ["sh", "-euc", script, str(disk), str(folder)], at=workspace.root / "logs", name="exports"
    )
    size, allocated = contenders.sizes(sorted(folder.glob("*.qcow2")))
    resources.remove(folder)
    return contenders.Outcome(figures=figures, size=size, allocated=allocated)


def prepare(workspace: Workspace) -> None:
    """Everything that needs the network, once: the lock, the packages, the toolbox."""
    cache = sources.Cache(workspace.project / "cache")
    _seed(cache.root)
    workspace.prepare(cache)
    archive.make(contenders.package_sets(), work=workspace.root, cache=cache)
    toolbox.make(workspace.root)


def _seed(cache: Path) -> None:
    """Begin with what the user's own cache has downloaded and compiled already."""
    given = resources.cache_root()
    for name in ("blobs", "channel", "accelerator.json"):
        source, target = given / name, cache / name
        if source.is_dir() and not target.exists():
            shutil.copytree(source, target)
        elif source.is_file() and not target.exists():
            shutil.copyfile(source, target)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=HERE / "work", metavar="DIR", help="default: bench/work")
    parser.add_argument("--results", type=Path, default=HERE / "results/bench.json", metavar="FILE")
    parser.add_argument("--peers", nargs="*", choices=contenders.peer_names(), help="default: all")
    parser.add_argument("--ours", nargs="*", choices=[*VARIANTS], default=[*VARIANTS], help="default: all")
    parser.add_argument("--scenarios", nargs="*", choices=[*SCENARIOS, "scale"], help="default: all")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="pairs of each kind (default: 3)")
    parser.add_argument("--cold-rounds", type=int, default=2, metavar="N", help="cold pairs (default: 2)")
    parser.add_argument("--prepare", action="store_true", help="stop before the first measurement")
    parser.add_argument("--report", action="store_true", help="only write the page and the plot")
    return parser.parse_args(argv)


def main() -> int:
    """Run what was asked; 1 when a contender failed."""
    args = parse()
    if args.report:
        report.write(results.Record.read(args.results))
        return 0
    if os.geteuid() != 0:
        print("the benchmark needs root: peers mount and make loop devices", file=sys.stderr)
        return 2
    os.environ[runs.MARK] = runs.mark()
    workspace = Workspace(args.work)
    workspace.tidy()
    try:
        prepare(workspace)
        if args.prepare:
            return 0
        return measure(args, workspace)
    finally:
        runs.reap(own=True)


def measure(args: argparse.Namespace, workspace: Workspace) -> int:
    """Measure what was asked, writing the figures after each run."""
    wanted = args.scenarios if args.scenarios is not None else [*SCENARIOS, "scale"]
    names = args.peers if args.peers is not None else contenders.peer_names()
    ours = [
        Ours(name=name, workspace=workspace, variant=VARIANTS[name][0], description=VARIANTS[name][1])
        for name in args.ours
    ]
    with archive.served(workspace.root / "archive") as mirror:
        peers = [
            Peer(name=name, workspace=workspace, toolbox=workspace.root / "toolbox", mirror=mirror)
            for name in names
        ]
        measured = [f"{name}/{scenario}" for name in [*names, "scale", "debian"] for scenario in wanted]
        record = results.Record.begin(args.results, [*ours, *peers], workspace, SCENARIOS, measured)
        bench = Bench(workspace, record)
        scenarios = [one for one in SCENARIOS if one in wanted]
        compare(bench, ours, peers, scenarios, args.rounds, args.cold_rounds)
        if "cold" in wanted:
            debian_alone(bench, args.cold_rounds)
        if "scale" in wanted and ours:
            scale(bench, ours[0], min(args.rounds, 2))
    workspace.tidy(wait=False)
    report.write(record)
    return 1 if record.failures else 0


if __name__ == "__main__":
    sys.exit(main())
