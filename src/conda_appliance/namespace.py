"""Programs in mounts and processes of their own, which end with them: nothing can leak out.

As root this needs nothing but unshare(1). Everybody else becomes root of a user namespace first (`become_root`),
as ``podman unshare`` does: files then belong to the user's subordinate ids, and all else here is the same.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
import stat
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from conda_appliance import process, trees
from conda_appliance.errors import ToolMissing
from conda_appliance.process import Argument

#: What mounts the root file system; the words that follow the script are the program to run in it. Reads WORK
#: (a folder with lower/0, lower/1 …, the uppermost first), LOWER (those names), UPPER (upper, or nothing for a
#: file system that is only read). Paths are relative, because overlayfs takes : and , for its own.
_OVERLAY = """
trap 'exit 143' TERM INT
cd "$WORK"
mkdir -p root
if [ -n "$UPPER" ]; then
    rm -rf overlay  # one that was mounted as volatile is not mounted again
    mkdir overlay
    OPTIONS="${OPTIONS}lowerdir=$LOWER,upperdir=$UPPER,workdir=overlay"
    # volatile (Linux 5.10): a program's fsync(2) is for a machine's disk, and this is none. Unmounting waits for none.
    mount -t overlay appliance -o "$OPTIONS,volatile" root 2>/dev/null ||
        mount -t overlay appliance -o "$OPTIONS" root
else
    mount -t overlay appliance -o "${OPTIONS}ro,lowerdir=$LOWER" root
fi
"""

#: What a program in a root file system finds there: processes, devices, memory; nothing of this host's /sys.
_SYSTEM = """
hostname localhost
mount -t proc -o nosuid,nodev,noexec proc root/proc
mount -t tmpfs -o mode=0755,nosuid,nodev run root/run
mount -t tmpfs -o mode=1777,nosuid,nodev tmp root/tmp
mount -t tmpfs -o mode=0755,nosuid dev root/dev
for name in null zero full random urandom tty; do
    : >root/dev/$name
    mount --bind /dev/$name root/dev/$name
done
mkdir -m 1777 root/dev/shm
ln -s /proc/self/fd root/dev/fd
ln -s fd/0 root/dev/stdin
ln -s fd/1 root/dev/stdout
ln -s fd/2 root/dev/stderr
# What resolves names here resolves them there, for roles that ask the network.
mkdir -p root/run/systemd/resolve
cat /etc/resolv.conf >root/run/systemd/resolve/stub-resolv.conf 2>/dev/null || true
if [ -n "$PAYLOAD" ]; then
    mkdir root/run/payload
    mount --bind "$PAYLOAD" root/run/payload
fi
"""

_RUN = '\nstatus=0\n"$@" || status=$?\nexit "$status"\n'


def tools() -> tuple[str, ...]:
    """The programs of the host that this module needs."""
    return ("unshare", "mount")


def script(
    work: Path, lower: Sequence[Path], *, upper: str = "", payload: Path | None = None, system: bool = False
) -> tuple[str, dict[str, str]]:
    """The shell script that mounts ``lower`` (the uppermost first) at ``work/root``, and its environment.

    With ``upper``, a folder's name in ``work``, what is written lands there. ``system`` adds what programs in a
    root file system expect, and ``payload`` is then found in its ``/run/payload``.
    """
    (work / "lower").mkdir(exist_ok=True)
    names = []
    for number, path in enumerate(lower):
        name = f"lower/{number}"
        (work / name).unlink(missing_ok=True)
        (work / name).symlink_to(path.resolve())
        names.append(name)
    if upper:
        (work / upper).mkdir(exist_ok=True)
        (work / upper).chmod(0o755)  # it is the root folder of what is mounted
    elif len(names) == 1:  # overlayfs wants two folders to read from
        (work / "lower/nothing").mkdir(exist_ok=True)
        names.append("lower/nothing")
    variables = {
        "WORK": os.fspath(work),
        "LOWER": ":".join(names),
        "UPPER": upper,
        "OPTIONS": "" if _is_first() else "userxattr,",
        "PAYLOAD": os.fspath(payload.resolve()) if payload else "",
    }
    return _OVERLAY + (_SYSTEM if system else "") + _RUN, variables


#: What of this host a confined program finds: programs and libraries, to read; no settings, no homes.
_HOST = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
#: A root of its own in memory, with the environment where it lives. WORK is a mount point, TREE the environment, HOME
#: where it stands. Then nobody runs the words that follow, with no rights to win back.
_CONFINED = f"""
mount -t tmpfs -o mode=0755 appliance "$WORK"
cd "$WORK"
for name in {" ".join(_HOST)}; do
    if [ -L "/$name" ]; then
        cp -P "/$name" "$name"
    elif [ -d "/$name" ]; then
        mkdir "$name"
        mount --rbind "/$name" "$name"
    fi
done
mkdir -m 1777 tmp
mkdir -p proc dev etc ".$HOME"
mount -t proc -o nosuid,nodev,noexec proc proc
for name in null zero random urandom; do
    : >"dev/$name"
    mount --bind "/dev/$name" "dev/$name"
done
mkdir -m 1777 dev/shm
echo 'nobody:x:65534:65534:nobody:/tmp:/bin/sh' >etc/passwd
mount --bind "$TREE" ".$HOME"
if [ -n "$ALSO" ]; then
    mkdir -p ".$ALSO"
    mount --bind "$ALSO" ".$ALSO"
fi
exec chroot . setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all \
    env -i HOME=/tmp PATH="$HOME/bin:/usr/bin:/bin" LC_ALL=C.UTF-8 "$@"
"""


def place_of(prefix: str) -> str:
    """Where `confined` has an environment: where it lives, but for one in a folder of the system."""
    return "/environment" if prefix.split("/")[1] in {*_HOST, "proc", "dev", "etc"} else prefix


def confined(
    work: Path, tree: Path, prefix: str, argv: Sequence[Argument], *, also: Path | None = None
) -> list[Argument]:
    """The command that runs ``argv`` as nobody, with no network, where it sees an environment and may write to /tmp.

    ``work`` is an empty folder, ``tree`` the environment that lives at ``prefix`` (`place_of` says where it stands).
    ``also`` is a folder that is found there too, where it is here. Needs root, of this system or of a user namespace
    (`require_root`).
    """
    places = {"WORK": work.resolve(), "TREE": tree.resolve(), "ALSO": also.resolve() if also else ""}
    variables = "".join(f"{name}={shlex.quote(os.fspath(place))}\n" for name, place in places.items())
    return isolated(f"{variables}HOME={place_of(prefix)}\n{_CONFINED}", argv, network=False)


#: Of root's rights what others wrote keeps those over files: it cannot mount, make devices or leave its root.
_RIGHTS = "-all,+chown,+dac_override,+fowner,+fsetid"
#: Kernel settings below /proc are this host's: they are only read.
_ENTER = f"""
mount -o remount,bind,ro root/proc
exec chroot root setpriv --no-new-privs --inh-caps=-all --bounding-set={_RIGHTS} env -i "$@"
"""


def entered(text: str, argv: Sequence[Argument]) -> list[Argument]:
    """The command that runs ``argv`` in what the script ``text`` (`script`, with a ``system``) mounts.

    It has no network, few of root's rights, and of the environment what ``argv`` begins with, as for env(1).
    """
    return isolated(text, ["sh", "-euc", _ENTER, "sh", *argv], network=False)


def hide_below(folder: Path) -> None:
    """Make a folder of an upper layer hide what the layers below have in it (overlayfs calls it opaque)."""
    os.setxattr(folder, "trusted.overlay.opaque" if _is_first() else "user.overlay.opaque", b"y")


def settle_upper(upper: Path) -> None:
    """Take from a folder that overlayfs wrote to what only says where on this host it was: it lies elsewhere now.

    What it deleted (a device 0,0) and folders that hide the ones below (``opaque``) stay. Source: the kernel's
    Documentation/filesystems/overlayfs.rst.
    """
    for path, about in trees.walk(upper):
        if stat.S_ISLNK(about.st_mode):
            continue
        for name in os.listxattr(upper / path, follow_symlinks=False):
            if re.fullmatch(r"(trusted|user)\.overlay\.(origin|impure|uuid|nlink)", name):
                os.removexattr(upper / path, name, follow_symlinks=False)


def isolated(text: str, argv: Sequence[Argument], *, network: bool = True) -> list[Argument]:
    """The command that runs a shell script in namespaces of its own, with ``argv`` as its words."""
    flags = ["--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child=SIGKILL"]
    if not network:
        flags.append("--net")
    return ["unshare", *flags, "--", "sh", "-eu", "-c", text, "sh", *argv]


@cache
def can_mount() -> bool:
    """Whether we may mount here at all: root of this system or of a user namespace may, root of most containers not."""
    mounts = isolated("mount -t tmpfs appliance /tmp", [])
    return os.geteuid() == 0 and process.run(mounts, check=False).returncode == 0


def _is_first() -> bool:
    """Whether this is the system's first user namespace, where root is really root (user_namespaces(7))."""
    words = Path("/proc/self/uid_map").read_text(encoding="ascii").split()
    return words == ["0", "0", "4294967295"]


def become_root(argv: Sequence[str]) -> None:
    """Go on as root of a user namespace, running this program anew with ``argv``.

    As root, and where that cannot be, do nothing: what needs it says so (`require_root`).
    """
    if os.geteuid() == 0:
        return
    try:
        require_root()
    except ToolMissing:
        return
    flags = ["--user", "--map-auto", "--map-root-user", "--mount"]
    command = [process.find("unshare"), *flags, "--", sys.executable, "-P", "-m", "conda_appliance", *argv]
    os.execv(command[0], command)  # noqa: S606 (this very program, as another user)


def require_root(etc: Path = Path("/etc")) -> None:
    """Raise ToolMissing, saying all that is missing, unless we are root or may be root of a user namespace."""
    if os.geteuid() == 0:
        return
    missing, hints = [], []
    try:
        process.require("unshare", "newuidmap", "newgidmap")
    except ToolMissing as error:
        missing.append(error.message)
        hints.append(error.hint)
    user = pwd.getpwuid(os.getuid()).pw_name
    for name in ("subuid", "subgid"):
        try:
            lines = (etc / name).read_text(encoding="utf-8").splitlines()
        except OSError:
            lines = []
        if not any(line.split(":")[0] in (user, str(os.getuid())) for line in lines):
            missing.append(f"{etc / name} gives {user} no subordinate ids")
            hints.append(f"usermod --add-{name}s 100000-165535 {user}")
    if (
        not missing
        and process.run(
            ["unshare", "--user", "--map-auto", "--map-root-user", "true"], check=False
        ).returncode
    ):
        missing.append("this kernel lets users make no user namespace")
        hints.append(
            "sysctl kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0"
        )
    if missing:
        raise ToolMissing(
            "without root's rights a root file system is made in a user namespace, and here that cannot be: "
            + "; ".join(missing),
            hint="as root: " + " && ".join(dict.fromkeys(hints)) + "    or run this command with sudo",
        )
