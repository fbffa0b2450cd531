# shellcheck shell=sh disable=SC2154 # variables of medium.sh, initramfs-tools and installer.conf
# Starts the appliance from its disc (initramfs-tools(7): a boot script). The disc's root file system is read-only; what
# is written goes to memory, or to a partition labelled "appliance-data" where there is one. No other disk is touched.
# shellcheck source=iso/boot/medium.sh
. /scripts/medium

IMAGE=appliance/root.squashfs

mount_top() { :; }
mount_premount() { :; }
mount_bottom() { :; }

# to_memory: the medium may be pulled out afterwards
to_memory() {
    size=$(blockdev --getsize64 "$1")
    while read -r name count _; do
        [ "$name" != MemAvailable: ] || free=$((count * 1024))
    done </proc/meminfo
    # A machine needs some for itself too.
    if [ "$((size + 268435456))" -gt "$free" ]; then
        say "Not copied to memory: that takes $((size >> 20)) MiB, and $((free >> 20)) are free. The medium is needed."
        return 0
    fi
    say "Copying the appliance to memory ($((size >> 20)) MiB) ..."
    mkdir -p /run/appliance/memory
    mount -t tmpfs -o "size=$((size + 1048576)),mode=0700" tmpfs /run/appliance/memory
    dd if="$1" of=/run/appliance/memory/root.squashfs bs=1M status=none ||
        fail "The medium cannot be read to its end: it is damaged."
    losetup -d "$1"
    below=$(losetup --noheadings --output NAME --associated "$medium")
    umount "$MEDIUM"
    losetup -d "$below"
    source=/run/appliance/memory/root.squashfs
    say "The medium may be taken out."
}

# keep_data: mounts the partition for what is written, if there is one, else memory, at /run/appliance/data
keep_data() {
    mkdir -p /run/appliance/data
    data=
    has appliance.forget || data=$(blkid -L appliance-data 2>/dev/null)
    if [ -n "$data" ]; then
        e2fsck -p "$data" >>/run/appliance/log 2>&1
        [ "$?" -lt 4 ] && mount -t ext4 -o rw "$data" /run/appliance/data && return 0
        say "What is kept on $data cannot be used: it is damaged. This time everything goes to memory."
    fi
    mount -t tmpfs -o mode=0755 tmpfs /run/appliance/data
}

mountroot() {
    mkdir -p /run/appliance
    find_consoles
    modprobe -qa loop squashfs overlay
    find_medium
    if has appliance.verify; then
        check_medium || fail "The medium is damaged: write it anew, or use another one."
    fi
    source=$MEDIUM/$IMAGE
    loop=$(losetup --find --show --read-only "$source") || fail "The disc's root file system cannot be read."
    if has appliance.toram; then
        to_memory "$loop"
        [ "$source" = "$MEDIUM/$IMAGE" ] || loop=$(losetup --find --show --read-only "$source")
    fi
    mkdir -p /run/appliance/root
    mount -t squashfs -o ro "$loop" /run/appliance/root ||
        fail "The disc's root file system cannot be mounted: the medium is damaged."
    keep_data
    mkdir -p /run/appliance/data/upper /run/appliance/data/work
    mount -t overlay -o "lowerdir=/run/appliance/root,upperdir=/run/appliance/data/upper,workdir=/run/appliance/data/work" \
        overlay "${rootmnt:?}" || fail "What is written cannot be laid over the disc."
    # The disk that the image was made for is not there.
    echo "overlay / overlay defaults 0 0" >"$rootmnt/etc/fstab"
    mkdir -p "$rootmnt/etc/cloud/cloud.cfg.d"
    printf 'growpart: {mode: "off"}\nresize_rootfs: false\n' >"$rootmnt/etc/cloud/cloud.cfg.d/90-live-disc.cfg"
}
