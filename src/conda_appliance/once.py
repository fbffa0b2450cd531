"""Programs that Debian's packages start again and again while they are configured, and that need to run once.

What stands in for them is first on the PATH of packages' scripts, in a folder that is gone afterwards. It does nothing
where nothing is to be done on a system that is new, or puts it off until all is installed.
"""

from __future__ import annotations

#: The folder, in the system; it is root's, as the system is.
FOLDER = "var/tmp/conda-appliance-once"
#: What stands in, as path → text.
STAND_INS = {
    # dh_python3(1) has each package's postinst say `py3compile -p PACKAGE`; AT_ONCE does it for all of them.
    f"{FOLDER}/py3compile": f"""\
#!/bin/sh
if [ $# = 2 ] && [ "$1" = -p ]; then
    echo "$2" >>/{FOLDER}/packages
else
    exec /usr/bin/py3compile "$@"
fi
""",
    # ca-certificates' postinst runs it without its hooks, and then sets off a trigger that runs it with them.
    f"{FOLDER}/update-ca-certificates": """\
#!/bin/sh
[ "$*" = "--hooksdir " ] || exec /usr/sbin/update-ca-certificates "$@"
""",
    # dh_installsystemd(1) has a postinst say `unmask UNIT`, ask `was-enabled UNIT`, which is true of one that is new,
    # and then say `enable UNIT`: that waits for AT_ONCE, or for whoever says more of any unit.
    f"{FOLDER}/deb-systemd-helper": f"""\
#!/bin/sh
said=$*
said=${{said#--quiet }}
of=system helper=deb-systemd-helper
case $said in "--user "*) said=${{said#--user }} of=user helper=deb-systemd-user-helper ;; esac
unit=${{said#* }}
case $said in
*" "*" "*) ;; # several at once
"unmask "*) [ -e "/etc/systemd/$of/$unit" ] || exit 0 ;;
"was-enabled "*) [ -e "/var/lib/systemd/$helper-enabled/$unit.dsh-also" ] || exit 0 ;;
"enable "*)
    printf "%s\\n" "$DPKG_MAINTSCRIPT_PACKAGE --$of enable $unit" >>/{FOLDER}/units
    exit 0
    ;;
esac
/{FOLDER}/enable
exec /usr/bin/deb-systemd-helper "$@"
""",
    # Each in a process of its own, which need not load what deb-systemd-helper uses. What fails there fails no package.
    f"{FOLDER}/enable": f"""\
#!/usr/bin/perl
use strict;
use File::Basename ();
use File::Path ();
use File::Temp ();
use Getopt::Long ();
open my $units, "<", "/{FOLDER}/units" or exit;
my @units = <$units>;
unlink "/{FOLDER}/units" or die $!;
for (@units) {{
    my $pid = fork // die $!;
    if (!$pid) {{
        ($ENV{{DPKG_MAINTSCRIPT_PACKAGE}}, @ARGV) = split;
        do "/usr/bin/deb-systemd-helper";
        print STDERR $@;
        exit;
    }}
    waitpid $pid, 0;
}}
""",
    # It moves what an older version left: nothing of a package that is new. It would ask dpkg for each version first.
    f"{FOLDER}/dpkg-maintscript-helper": """\
#!/bin/sh
case "$* " in *" -- install " | *" -- configure " | *" -- configure  ") exit 0 ;; esac
exec /usr/bin/dpkg-maintscript-helper "$@"
""",
    # Each machine makes its own host keys.
    f"{FOLDER}/ssh-keygen": """\
#!/bin/sh
case "$* " in *" /etc/ssh/ssh_host_"*) exit 0 ;; esac
exec /usr/bin/ssh-keygen "$@"
""",
}
#: What they put off, as a hook of mmdebstrap's ($1 is the system). Of a package's modules, py3compile compiles those
#: for any program; sorted, since byte code depends on what was compiled before in the same process.
AT_ONCE = f"""set -e
chroot "$1" /{FOLDER}/enable
if [ -e "$1"/{FOLDER}/packages ]; then
    chroot "$1" sh -c 'dpkg-query --listfiles $(cat /{FOLDER}/packages)' >"$1"/{FOLDER}/files
    grep -E '^/usr/lib/python3[^/]*/.*[.]py$' "$1"/{FOLDER}/files | LC_ALL=C sort -u |
        chroot "$1" xargs -r /usr/bin/py3compile
fi
rm -r "$1"/{FOLDER}"""
