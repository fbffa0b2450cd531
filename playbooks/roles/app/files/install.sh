# The definition's files; then a user without rights for each service, whose unit is checked and enabled. The image's
# first boot starts it. Reads ARCHIVE, a tar of the files, and SERVICES, a line `NAME PREFIX PROGRAM` for each.
set -eu
umask 022
# Folders that are there keep their modes, and links to folders (/lib) stay links.
if ! tar --compare --file="$ARCHIVE" --directory=/ >/dev/null 2>&1; then
    tar --extract --file="$ARCHIVE" --directory=/ --preserve-permissions --no-overwrite-dir --keep-directory-symlink
    echo "changed: files"
fi

failed=0
complain() {
    echo "$*" >&2
    failed=1
}

names=$(printf '%s' "$SERVICES" | cut -d' ' -f1)
for name in $names; do
    for folder in /usr/lib/systemd/system /lib/systemd/system; do
        [ ! -e "$folder/$name.service" ] ||
            complain "a service cannot be named $name: the system has a unit of that name ($folder/$name.service)"
    done
    note=$(getent passwd "$name" | cut -d: -f5)
    [ -z "$(getent passwd "$name")" ] || [ "$note" = "Service $name" ] ||
        complain "a service cannot be named $name: the system has a user of that name"
done

printf '%s' "$SERVICES" >/run/services
while read -r name prefix program; do
    if ! { [ -f "$program" ] && [ -x "$program" ]; }; then
        complain "service $name: there is no program $program"
        near=$(find "$prefix/bin" -name "*$(basename "$program")*" -printf '%f ' 2>/dev/null || true)
        [ -z "$near" ] || echo "    in $prefix/bin there is: $near" >&2
    fi
done </run/services
rm /run/services
[ "$failed" = 0 ] || exit 1

before=$(cat /etc/passwd)
systemd-sysusers /etc/sysusers.d/conda-appliance.conf
[ "$before" = "$(cat /etc/passwd)" ] || echo "changed: users"

# A setting that this systemd cannot read only warns at boot, and might be one that fences the service in.
for name in $names; do
    unit=/etc/systemd/system/$name.service
    if systemd-analyze verify --man=no "$unit" 2>&1 | grep -F "$unit:" >&2; then
        complain "systemd cannot read all of $unit"
    fi
done
[ "$failed" = 0 ] || exit 1

for name in $names; do
    systemctl -q is-enabled "$name.service" || {
        systemctl -q --no-reload enable "$name.service"
        echo "changed: $name.service is enabled"
    }
done
