# Removes what the build left: its key, this machine's identity, logs, caches, histories; then gives the room back.
set -eu
running() { [ -d /run/systemd/system ]; }

if running; then
    # What still starts would write after us. "degraded" is an end too: the image's checks look at failed units.
    timeout 300 systemctl is-system-running --wait >/dev/null || true
    journalctl --relinquish-var 2>/dev/null || true
fi

# Keys and identities. An empty machine-id is filled at boot; "uninitialized" would also enable units by preset.
rm -rf /root/.ssh /etc/ssh/ssh_host_*
: >/etc/machine-id
if [ -f /var/lib/dbus/machine-id ] && [ ! -L /var/lib/dbus/machine-id ]; then
    rm /var/lib/dbus/machine-id
fi
rm -f /var/lib/systemd/random-seed /var/lib/systemd/credential.secret /boot/efi/loader/random-seed

# cloud-init's memory of this machine, and what it wrote for it: the next machine is a new one to it.
rm -rf /var/lib/cloud/instance /var/lib/cloud/instances /var/lib/cloud/data /var/lib/cloud/sem /var/lib/cloud/handlers
rm -f /etc/netplan/50-cloud-init.yaml /etc/network/interfaces.d/50-cloud-init* /etc/systemd/network/10-cloud-init-* \
    /etc/NetworkManager/system-connections/cloud-init-* /etc/udev/rules.d/70-persistent-net.rules \
    /etc/ssh/sshd_config.d/50-cloud-init.conf /etc/sudoers.d/90-cloud-init-users

# Leases, caches, histories.
rm -rf /var/lib/dhcp/*.lease* /var/lib/NetworkManager/*.lease /var/lib/apt/lists/* /var/cache/apt/*.bin \
    /var/cache/apt/archives/*.deb /root/.ansible /root/.cache
for home in /root /home/*; do
    rm -f "$home/.bash_history" "$home/.python_history" "$home/.lesshst" "$home/.viminfo" "$home/.wget-hsts" \
        "$home/.ssh/known_hosts" "$home/.ssh/known_hosts.old" "$home/.sudo_as_admin_successful"
done
# Ansible's module that runs this script lives in one of these, and running units in the others.
find /tmp /var/tmp -xdev -mindepth 1 -maxdepth 1 ! -name 'ansible*' ! -name 'systemd-private-*' -exec rm -rf {} +

# Logs: rotated ones go, the others stay as empty files with their owners.
rm -rf /var/log/journal/* /var/log/installer
find /var/log -xdev -type f \( -name '*.gz' -o -name '*.xz' -o -name '*.[0-9]' -o -name '*.old' \) -delete
find /var/log -xdev -type f -size +0 -exec truncate --size=0 {} +

sync
if running; then
    fstrim --all --quiet || echo "this disk does not take room back; the image is larger for it"
fi
