# The administrator with the definition's keys; then sshd and sudo are asked what they make of their settings.
# Reads ADMIN, a user's name, and KEYS, a public key a line.
set -eu
if ! getent passwd "$ADMIN" >/dev/null; then
    if getent group "$ADMIN" >/dev/null; then
        echo "access.user: the system has a group of its own named $ADMIN; name another" >&2
        exit 1
    fi
    useradd --create-home --user-group --shell /bin/bash --comment "Administrator" "$ADMIN"
    echo "changed: user $ADMIN"
elif [ "$(id -u "$ADMIN")" -lt 1000 ]; then
    echo "access.user: $ADMIN is an account of the system's own; name another" >&2
    exit 1
fi
usermod --lock "$ADMIN"
usermod --lock root

home=$(getent passwd "$ADMIN" | cut -d: -f6)
group=$(id -gn "$ADMIN")
if [ -n "$KEYS" ] && ! printf '%s' "$KEYS" | cmp -s - "$home/.ssh/authorized_keys"; then
    install -d -m 0700 -o "$ADMIN" -g "$group" "$home/.ssh"
    printf '%s' "$KEYS" >"$home/.ssh/authorized_keys"
    chmod 0600 "$home/.ssh/authorized_keys"
    chown "$ADMIN:$group" "$home/.ssh/authorized_keys"
    echo "changed: $home/.ssh/authorized_keys"
fi

visudo --check --quiet --file=/etc/sudoers.d/conda-appliance
systemctl -q is-enabled ssh-host-keys.service || {
    systemctl -q --no-reload enable ssh-host-keys.service
    echo "changed: ssh-host-keys.service is enabled"
}

# sshd takes the first value it reads: what another file says before ours would win.
mkdir -p /run/sshd
key=/run/sshd/any_host_key # it answers with some host key only, and an image has none of its own
[ -e $key ] || ssh-keygen -q -t ed25519 -N "" -f $key
said=$(sshd -T -h $key -C user="$ADMIN",host=localhost,addr=127.0.0.1)
rm -f $key $key.pub
for wanted in "passwordauthentication no" "kbdinteractiveauthentication no" "permitrootlogin no" "pubkeyauthentication yes"; do
    printf '%s\n' "$said" | grep -qx "$wanted" || {
        echo "sshd does not take '$wanted' from sshd_config.d: $(printf '%s\n' "$said" | grep "^${wanted% *} ")" >&2
        exit 1
    }
done
