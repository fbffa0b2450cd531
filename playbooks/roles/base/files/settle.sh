# UTC, time from the network, DHCP on any wired interface, and that the machine knows its own name. Reads NAME: nothing
# where whoever runs this names the machine afterwards.
set -eu

put() { # put PATH TEXT: write a file if it differs
    if [ "$(cat "$1" 2>/dev/null)" != "$2" ]; then
        mkdir -p "$(dirname "$1")"
        printf '%s\n' "$2" >"$1"
        echo "changed: $1"
    fi
}

# sudo and others look their own host's name up (/etc/hostname is written with all that names the machine).
if [ -n "$NAME" ] && ! grep -qE "^127\.0\.1\.1[[:space:]]+$NAME\$" /etc/hosts; then
    sed -i '/^127\.0\.1\.1[[:space:]]/d' /etc/hosts
    printf '127.0.1.1 %s\n' "$NAME" >>/etc/hosts
    echo "changed: /etc/hosts"
fi

if [ "$(readlink /etc/localtime || true)" != /usr/share/zoneinfo/Etc/UTC ] && [ -e /usr/share/zoneinfo/Etc/UTC ]; then
    ln -sf /usr/share/zoneinfo/Etc/UTC /etc/localtime
    echo "changed: /etc/localtime"
fi
if [ -e /etc/timezone ]; then
    put /etc/timezone Etc/UTC
fi
if [ -e /usr/lib/systemd/system/systemd-timesyncd.service ] && ! systemctl -q is-enabled systemd-timesyncd; then
    systemctl -q --no-reload enable systemd-timesyncd
    echo "changed: systemd-timesyncd is enabled"
fi

# What cloud-init wrote for the machine that the image is built in names its network card, and goes when the image is
# sealed. A clone without a seed disc needs this; it sorts last, so whatever else is configured goes before it.
if systemctl -q is-enabled systemd-networkd; then
    put /etc/systemd/network/95-any-wired.network "[Match]
Type=ether
Kind=!*

[Network]
DHCP=yes"
fi
