"""The layer that makes a machine a Vagrant box: Vagrant's user, over all that the playbook did.

It is on a box's disk alone. What Vagrant expects: https://developer.hashicorp.com/vagrant/docs/boxes/base (a user
``vagrant`` with the insecure key and sudo without a password). A password, which that page also names, is of no use
here: sshd takes keys alone.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from conda_appliance import layers, log, namespace, process, resources, trees
from conda_appliance.builders.rootfs_disk import Parts
from conda_appliance.layer import Layer

#: Vagrant's insecure public key, ``keys/vagrant.pub`` of Vagrant 2.3.4 (Debian's package): RSA alone. Later versions
#: have an Ed25519 key too, but 2.3 would leave that one on the machine when it replaces the key at the first ``up``:
#: it removes the lines of its own file and no others (plugins/guests/linux/cap/public_key.rb). All versions log in by
#: this one.
KEY = "templates/vagrant/vagrant.pub"

#: Run in the mounted system; the words are the key's file and what sudo is told.
_ADD = """
chroot root useradd --create-home --user-group --no-log-init --shell /bin/bash --comment Vagrant vagrant
chroot root install -d -m 0700 -o vagrant -g vagrant /home/vagrant/.ssh
chroot root install -m 0600 -o vagrant -g vagrant /dev/null /home/vagrant/.ssh/authorized_keys
cat "$1" >root/home/vagrant/.ssh/authorized_keys
chroot root install -m 0440 /dev/null /etc/sudoers.d/vagrant
echo "$2" >root/etc/sudoers.d/vagrant
chroot root visudo --check --quiet --file=/etc/sudoers.d/vagrant
"""
_SUDO = "vagrant ALL=(ALL:ALL) NOPASSWD: ALL"


def decides(parts: Parts) -> dict[str, Any]:
    """What of a box's disk is decided here."""
    return {
        "key": resources.sha256_of(resources.find(KEY, parts.job.project)),
        "code": layers.code(__file__, str(namespace.__file__)),
    }


def user(parts: Parts, step: log.Step) -> Layer:
    """The layer with Vagrant's user, over the system and what the playbook changed in it.

    The definition's files and the environments have no part in it.
    """
    job = parts.job
    key = resources.find(KEY, job.project)
    lower = [parts.provisioned.path, parts.system.path]

    def make(to: Path, work: Path) -> None:
        step.update("adding Vagrant's user")
        mounted, variables = namespace.script(work, lower, upper="upper", system=True)
        process.run(
            namespace.isolated(mounted, ["sh", "-euc", _ADD, "sh", key.resolve(), _SUDO]),
            env={**variables, "SOURCE_DATE_EPOCH": str(job.epoch), "TZ": "UTC"},
            orphaned=signal.SIGKILL,
        )
        (work / "upper").rename(to)
        namespace.settle_upper(to)
        trees.set_times(to, job.epoch)

    return job.store.get(
        "vagrant",
        {
            "system": parts.system.sha256,
            "provisioned": parts.provisioned.sha256,
            "epoch": str(job.epoch),
            **decides(parts),
        },
        make,
        subject=job.image.name,
        quiet=True,
    )
