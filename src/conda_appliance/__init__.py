"""conda-appliance: one definition and one lock in; golden VM images and appliance discs out.

The map. The number is a module's layer; imports point to lower numbers only (a test holds it).

============ = ========================================================================================
redact       0 takes secrets out of what is told
errors       0 every error: message, hint, exit code
log          0 steps and progress; stderr only
platforms    0 the platforms that a machine may be of, and what all others call them: one table
lazy         0 loads a large library when it is first used
fields       0 what single values of a definition may be
prefix_check 0 checks an environment against its records; standard library only, runs on the machine too
first_boot   0 records what post-link scripts did, on the machine too; standard library only
unsynced     0 starts a program whose files are not written to the disk before its next step; standard library only
trees        0 what a tree of files holds, as text that can be hashed and compared
tars         0 tarfile with filters for what is unpacked, whatever the Python
formats      1 all forms that an appliance ships as: one table
overlay      0 trees laid over each other, some of which are there already → what is to be added
direct       1 large files, past the page cache: read, written, copied, summed up
elf          0 what an ELF file says of its debug symbols, and how it is loaded
facts        0 what a machine should be, as its checks read it
runs         0 which run of ours a process belongs to; ends what a dead run left
testsuites   0 which test suites of an environment no module that stays speaks of
debs         1 what a Debian package says of itself
sparse       2 a raw disk and what is laid into it: its blocks that are not empty; written raw again
ext4script   1 what is added to an ext4 file system → the commands of debugfs
hybrid       1 what lets an ISO 9660 disc start a machine, from a CD and from a stick: bytes in and out
contract     1 what a machine promises to its packages, as virtual packages
guest        1 what a check on a booted machine knows: a pytest plugin
conda_child  2 the only rattler, as a process of its own
boottime     1 how a machine starts: what its console, its service and systemd tell → phases
yamlfile     1 YAML 1.2 → a model; all mistakes of a file at once, with their places
process      1 the only place that starts a program
resources    1 finds data: the user's project first, then what is shipped; the cache; work folders
credentials  1 who we are to a server: from a file, a keyring or .netrc, never from a definition
network      1 certificates and proxies, the same for all that reaches a server
accelerator  3 whether KVM really runs a guest here
ansible      3 how Ansible is started
blockpack    3 blocks of a disk, each compressed by itself; those of a kept disk once
qcow2        4 a raw disk → a qcow2
rawzst       4 a raw disk → the same, compressed by zstd
vmdk         4 a raw disk → a streamOptimized vmdk
device       3 a disk or stick: what it is, what uses it; an image written to it and read back
definition_conda 2 the conda side of a definition: environments, channels, licences
definition_target 2 what a definition says of that
definition_forms 2 what a definition says of the forms that it ships as
definition_services 2 the services of a definition, and their programs
definition_slim 2 what a definition leaves out of its environments: parts, and the careful choice
definition   3 YAML → ImageDefinition
definition_disc 2 YAML → DiscDefinition: what a disc holds, and where
schema       4 ImageDefinition → JSON Schema and reference page
cache        4 the downloads and layers of this host, with what killed runs left in them cleared away
layer        2 one layer, and whether it is still what was made
layers       3 what was made once and is used again, addressed by the hash of all that decided it
lock         3 Lock and its parts; read, write, compare; pure
namespace    3 mounts and processes of their own, which end with them; the only mounts
package      3 conda packages as files: .conda archives and repodata
apt          3 a suite's signed index → the packages to install, with URL and SHA-256
diskforms    5 a disk image → the files that hypervisors and clouds take
vagrant      3 a machine that `vagrant up` started: a way in
emulation    4 whether this host runs another platform's programs, and how those of its environments are started
qemu         4 QEMU's command line, firmware and control protocol
recipes      3 the recipes of a channel that is built here
transport    2 the only network: bytes from one place, tried again and gone on with
sources      3 verified downloads into the cache, from wherever a file is to be had
render       3 the only Jinja; StrictUndefined; values as words of what reads them
disctree     4 what a disc will hold: its tree, its SHA256SUMS, its names
packed       4 trees of files → one read-only file system in a file, compressed
squashfs     2 trees of files → one read-only file system in no file: put together while it is read
machines     4 a batch of machines, YAML or CSV → what each one's seed disc holds
rattler      3 has rattler solve, link and read locks, in a process of its own
conda        4 channels and what is asked of them → the packages
bytecode     4 the modules of an environment, compiled for where it will live
linking      5 packages → an environment linked for its final path; verified
wheel        4 a wheel of PyPI → a conda package
workspace    2 an environment of a pixi workspace → what it asks for
workspace_python 1 a pyproject.toml's own words → features of a pixi workspace
environments 4 an environment as its user describes it → what is asked of channels and PyPI
inventory    4 what a machine should hold, path by path: what appliance-verify on it compares with
git          4 a git repository at a commit → its files as one tar
units        4 a definition's services → their units, for a machine, a disc, an installation
playbook     5 a definition with its lock → what happens in the machine: playbook, variables, files
buildtree    6 → BuildTree: the folder in which Packer makes the image
manifest     4 manifest.json, SHA256SUMS
importable   4 whether what could be imported in an environment still can
slim_rules   4 what of an environment each part of `slim` is
relocation   4 where linked environments name their prefix
post_link    5 packages' post-link scripts, run in the tree of the machine
pypi         5 what is asked of PyPI → wheels, for the machine and its conda packages
wheels       5 locked wheels → files of a linked environment
slim         5 linked environments → the same without some parts, with true records
channel      6 a folder of recipes → a channel of real conda packages
channel_job  4 what the makers of such packages share
channel_library 5 the shared objects of Debian's packages → conda packages
channel_python 5 Debian's source of CPython → the interpreter as a conda package
channel_wheels 5 pinned wheels of PyPI → conda packages
distribution 6 Miniforge, Miniconda, any installer of constructor's → the environment that it makes
system_files 4 the settings of a machine's system, beside Debian's own
once         4 what Debian's packages start again and again while they are configured, started once
bootstrap    5 locked .debs → a Debian root file system
disc         5 → an ISO 9660 disc; the only pycdlib; clock passed in
disk         5 trees of files → a bootable raw disk: partitions, file systems, boot loaders
ova          5 a vmdk → an appliance in one file: OVF descriptor, manifest, disk
installation 5 what linked environments carry to a machine where a shell moves and installs them
compare      5 what the root file system of a disk image holds
bootable     6 kernel, initramfs and GRUB for the discs that start a machine
suite        6 a locked Debian → the same with some packages as new as its suite has them
bill         6 what an appliance is made of → one bill of materials
lockfiles    6 locks of other tools, in and out: pixi.lock, conda-lock.yml, @EXPLICIT
programs     6 what services run beside packages: PEX, zipapp, wheel, git, frozen → files of the machine
payload      7 conda packages → the linked environments, as a tree and on the payload disc
seed         7 keys and a host name → the NoCloud disc that cloud-init reads
basedisk     6 a Debian root file system or a cloud image → the disk that Packer starts from
machine      6 Machine: QEMU, serial log, SSH; the only paramiko
export       6 disk image → artifacts, side by side
boxes        6 a disk that has Vagrant's user → a Vagrant box
resolve      8 definition → Lock
places       7 where a definition's channels are here, and their packages in a lock
fetching     8 lock → verified files in the cache
payload_disc 8 environments and install.sh → the payload disc for a machine that runs Linux
cyclonedx    7 a bill of materials as CycloneDX
spdx         7 a bill of materials as SPDX
containers   8 environments and a service → a container image, in layers
ospackages   7 environments, files and services → a Debian package and an RPM
plain        8 environments → a tar for any prefix, and an installer in one file
userspace_disc 8 environments and mount.sh → the disc that a machine runs them from
builders/    8 a Protocol; packer.py boots the base, rootfs.py does not; both run the playbook
catalog      7 the boxes of several versions → the catalog that Vagrant adds and updates from
locking      9 a definition's lock: written, moved, exported, read; what it names, fetched
check_report 7 what checks of a machine found: read, told, written
check        8 testinfra on a Machine → CheckReport
results      7 out/NAME/: finished builds, the latest, what a failure left
identity     8 a build's id: the hash of everything that decides the image
shipping     9 what a build ships: the disk's forms, boxes, what is made from the environments alone
build       10 the recipe: definition and lock → out/NAME/ID/
batch        11 several definitions at once
live_disc    9 a machine's layers → the disc that starts it
installer_disc 7 a golden image → the disc that installs it
discs        11 disc: discs made, read, verified, written to a stick
diff         9 diff: what changed between two locks, definitions or results that a person named
opened       6 an artifact of any form → the environments in it, file by file
verify       11 whether a result is what it was, and whether its lock gives the same bytes again
project      11 init: a commented definition, role and check for a new appliance
cli_options  5 what all verbs share: how a parser looks, options that mean the same everywhere
session      11 boot and ssh: a machine that a person uses
changes      5 two locks or two results → what changed between them
licences     7 a bill of materials → the report of licences
osv          7 a bill of materials and a dump of OSV → known vulnerabilities
cli_bill     11 sbom, licences, cves: their command line
cli_definition 12 init, validate, show, schema, formats, lock, fetch: their command line
cli_image    12 render, build, boot, ssh, check, catalog: their command line
cli_disc     12 disc: its command line
cli_result   12 verify, diff: their command line
cli_cache    12 cache, clean: their command line
cli          13 all verbs, exit codes
============ = ========================================================================================
"""

__version__ = "0.1.0"
