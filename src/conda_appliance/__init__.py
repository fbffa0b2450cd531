"""conda-appliance: one definition and one lock in; golden VM images and appliance discs out.

The map. The number is a module's layer; imports point to lower numbers only (a test holds it).

============ = ========================================================================================
errors       0 every error: message, hint, exit code
log          0 steps and progress; stderr only
prefix_check 0 checks an environment against its records; standard library only, runs on the machine too
guest        0 what a check on a booted machine knows: a pytest plugin
process      1 the only place that starts a program; ends what a dead run left
resources    1 finds data: the user's project first, then what is shipped; the cache; work folders
accelerator  2 whether KVM really runs a guest here
definition   2 YAML → ImageDefinition, DiscDefinition; all errors of a file at once
lock         2 Lock and its parts; read, write, compare; pure
package      2 conda packages as files: .conda archives and repodata
apt          2 a suite's signed index → the packages to install, with URL and SHA-256
qemu         3 QEMU's command line, firmware and control protocol
sources      3 the only network: verified downloads into the cache
conda        3 the only rattler: solve, link a prefix for its final path, verify it
wheel        3 a wheel of PyPI → a conda package
render       3 → BuildTree; the only Jinja; StrictUndefined
channel      4 a folder of recipes → a channel of real conda packages
bootstrap    4 locked .debs → a Debian root file system, as a tar file
disc         4 → an ISO 9660 disc; the only pycdlib; clock passed in
payload      5 conda packages → the linked environments on the payload disc
seed         5 keys and a host name → the NoCloud disc that cloud-init reads
basedisk     5 locked .debs or a cloud image → the disk a build starts from
resolve      6 definition → Lock; lock → verified files in the cache
builders/    5 a Protocol; packer.py boots the base and provisions it over SSH
export       5 disk image → artifacts
machine      5 Machine: QEMU, serial log, SSH; the only paramiko
check        6 testinfra on a Machine → CheckReport
manifest     6 manifest.json, SHA256SUMS
build        7 the recipe: definition and lock → out/NAME/ID/
project      7 init: a commented definition, role and check for a new appliance
session      8 boot and ssh: a machine that a person uses
cli          9 verbs, exit codes
============ = ========================================================================================
"""

__version__ = "0.1.0"
