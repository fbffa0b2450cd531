# Lists what of the build is left in the image. Anything at all fails the build.
found=$(
    for path in /root/.ssh/authorized_keys /root/.ssh/known_hosts /root/.bash_history /root/.ansible \
        /etc/ssh/ssh_host_*key* /var/lib/systemd/random-seed /var/lib/cloud/instance /var/lib/cloud/instances \
        /var/lib/dhcp/*.lease* /var/lib/apt/lists/*Packages* /var/cache/apt/archives/*.deb /home/*/.bash_history; do
        [ ! -e "$path" ] || echo "$path: belongs to the build"
    done
    [ ! -s /etc/machine-id ] || echo "/etc/machine-id: every clone would be the same machine"
    [ ! -f /var/lib/dbus/machine-id ] || [ -L /var/lib/dbus/machine-id ] || echo "/var/lib/dbus/machine-id: as above"
    find /var/log -xdev -type f -size +0 -printf '%p: a log of the build\n'
    # The build's key names itself in its comment.
    grep -ls ' build of [a-z0-9-]*$' /root/.ssh/* /home/*/.ssh/* /etc/ssh/* 2>/dev/null | sed 's/$/: lets the build in/'
    # A hash, or nothing at all, where "no password" is said by a ! or *.
    awk -F: '$2 !~ /^[!*]/ { print "/etc/shadow: " $1 " has a password, or needs none" }' /etc/shadow
)
[ -z "$found" ] && exit 0
printf '%s\n' "$found" >&2
exit 1
