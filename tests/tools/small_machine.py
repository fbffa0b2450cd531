"""A small Linux to install on: a root of its own with a shell, coreutils or busybox, and tar. Needs root's rights."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from conda_appliance import process, trees

#: What the installer may count on: a shell, tar, and these of coreutils.
COREUTILS = (
    *(
        "basename",
        "cat",
        "chmod",
        "comm",
        "cp",
        "cut",
        "dd",
        "df",
        "dirname",
        "du",
        "env",
        "id",
        "ln",
        "ls",
        "mkdir",
    ),
    *(
        "mv",
        "readlink",
        "rm",
        "rmdir",
        "sha256sum",
        "sort",
        "sync",
        "tac",
        "tail",
        "tr",
        "true",
        "uname",
        "uniq",
        "wc",
    ),
)
#: What changes a file system, and is killed at.
CHANGING = ("chmod", "cp", "dd", "ln", "mkdir", "mv", "rm", "rmdir", "sync", "tar")
#: What of a system may change without being a trace: the account tools' own backups and locks.
_BACKUPS = re.compile(
    r"etc/(\.pwd\.lock|(passwd|group|shadow|gshadow|subuid|subgid)-)|systemctl\.log|home(/.*)?|shim(/.*)?"
)

_INSIDE = """
mount --bind "$2" "$1/mnt"
mount -o remount,bind,ro "$1/mnt"
mount -t tmpfs dev "$1/dev"
for name in null zero urandom; do : >"$1/dev/$name"; mount --bind "/dev/$name" "$1/dev/$name"; done
mount --bind "$3" "$1$3"
root=$1 who=$4
shift 4
# shellcheck disable=SC2086 # words, on purpose
exec env -i $SETTINGS chroot --userspec="$who" "$root" "$@"
"""


@dataclass(frozen=True)
class Machine:
    """The root file system at ``root``; ``disc`` is the folder of a disc, which is its /mnt."""

    root: Path
    disc: Path

    def run(
        self,
        *argv: str,
        user: int = 0,
        env: Mapping[str, str] | None = None,
        check: bool = True,
        disc: Path | None = None,
    ) -> process.Completed:
        """Run a program in it."""
        variables = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root" if not user else "/home/user"}
        settings = [f"{name}={value}" for name, value in {**variables, **(env or {})}.items()]
        stdlib = sysconfig.get_path("stdlib")
        words = [self.root, disc or self.disc, stdlib, f"{user}:{user}", *argv]
        return process.run(
            ["unshare", "--mount", "sh", "-eu", "-c", _INSIDE, "sh", *words],
            env={"SETTINGS": " ".join(settings)},
            check=check,
        )

    def install(
        self,
        *words: str,
        user: int = 0,
        check: bool = True,
        disc: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> process.Completed:
        """Run the disc's installer, which asks nothing."""
        return self.run("sh", "/mnt/install.sh", "--yes", *words, user=user, check=check, disc=disc, env=env)

    def listing(self) -> dict[str, str]:
        """All that is in it, but what the account tools keep for themselves."""
        found = trees.listing(self.root, times=False)
        return {path: about for path, about in found.items() if not _BACKUPS.fullmatch(path)}

    def read(self, path: str) -> str:
        """A file's text, by the path inside."""
        return self.run("cat", path).stdout

    @property
    def asked(self) -> list[str]:
        """What systemctl was asked."""
        return (self.root / "systemctl.log").read_text().splitlines()

    def killed_at(self, step: int, *words: str, disc: Path | None = None) -> bool:
        """Run the installer and kill all of it when it starts its ``step``-th program; whether it came so far."""
        (self.root / "shim/count").write_text("0\n")
        path = "/shim:/usr/sbin:/usr/bin:/sbin:/bin"
        done = self.install(*words, check=False, disc=disc, env={"PATH": path, "KILL_AT": str(step)})
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return done.returncode != 0


def make(root: Path, *, busybox: bool = False, systemd: bool = True) -> Path:
    """A root file system with what the installer may count on; ``systemd`` adds its account tool and a systemctl."""
    for folder in (
        "bin",
        "dev",
        "etc",
        "home/user",
        "mnt",
        "opt",
        "proc",
        "root",
        "run",
        "shim",
        "tmp",
        "usr/bin",
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "usr/sbin").mkdir()
    os.chown(root / "home/user", 1000, 1000)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nuser:x:1000:\n")
    (root / "etc/shadow").write_text("root:*:19000::::::\nuser:*:19000::::::\n")
    (root / "etc/gshadow").write_text("root:*::\nuser:*::\n")
    (root / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\n")
    (root / "etc/login.defs").write_text("USERGROUPS_ENAB yes\n")
    if busybox:
        shutil.copy(process.find("busybox"), root / "bin/busybox")
        for name in process.run([root / "bin/busybox", "--list"]).stdout.split():
            if name != "busybox":
                (root / "bin" / name).symlink_to("busybox")
    else:
        for name in (*COREUTILS, "tar", "getent", "userdel"):
            copy(root, process.find(name), f"/bin/{name}")
        copy(root, process.find("dash"), "/bin/sh")
    python = Path(sys.executable).resolve()
    copy(root, str(python), str(python))
    Path(f"{root}{sysconfig.get_path('stdlib')}").mkdir(parents=True)
    if systemd:
        copy(root, process.find("systemd-sysusers"), "/bin/systemd-sysusers")
        (root / "usr/lib/systemd/system").mkdir(parents=True)
        (root / "usr/lib/systemd/systemd").write_text("")
        (root / "etc/systemd/system").mkdir(parents=True)
        (root / "run/systemd/system").mkdir(parents=True)
        (root / "run/user/1000/systemd").mkdir(parents=True)
        (root / "bin/systemctl").write_text('#!/bin/sh\necho "$*" >>/systemctl.log\n')
        (root / "bin/systemctl").chmod(0o755)
        (root / "systemctl.log").write_text("")
        (root / "systemctl.log").chmod(0o666)
    for name in CHANGING:
        (root / "shim" / name).write_text(
            "#!/bin/sh\n"
            "read -r count </shim/count\ncount=$((count + 1))\necho $count >/shim/count\n"
            f'[ $count != "$KILL_AT" ] || kill -9 0\nexec /bin/{name} "$@"\n'
        )
        (root / "shim" / name).chmod(0o755)
    return root


def copy(root: Path, source: str, to: str) -> None:
    """A program and the libraries it is linked with, by ldd(1)."""
    target = Path(f"{root}{to}")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
    told = process.run(["ldd", source], check=False).stdout
    libraries = [*re.findall(r"(/\S+) \(0x", told)]
    nss = sorted(Path("/lib/x86_64-linux-gnu").glob("libnss_files.so.*"))
    for library in [*libraries, *map(str, nss)]:
        place = Path(f"{root}{library}")
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, place)
