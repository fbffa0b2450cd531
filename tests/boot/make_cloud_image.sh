#!/bin/sh
# A cloud image that conda-appliance had no part in: a stand-in for one downloaded from a distribution.
#
#   make_cloud_image.sh TO.qcow2
#
# Debian 12 with cloud-init, ifupdown and dhclient, on an MBR disk that SYSLINUX boots from a FAT partition:
# other partitions, boot loader and network than our own bases have. Nobody can log in but with a key from a seed.
#
# As root. Needs: mmdebstrap e2fsprogs dosfstools mtools fdisk syslinux syslinux-common qemu-utils. About 250 MB
# come from the mirror. SUITE and MIRROR may be set.
set -eu
PATH=$PATH:/usr/sbin:/sbin
to=$(realpath -m "$1")
work=$(mktemp -d "$(dirname "$to")/.cloud-image.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
cd "$work"

# In a mount namespace, so that nothing stays mounted however this ends.
unshare --mount mmdebstrap --variant=minbase --dpkgopt=force-unsafe-io \
  --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
  --include=linux-image-cloud-amd64,initramfs-tools,systemd-sysv,udev,dbus,openssh-server,sudo,python3,cloud-init \
  --include=cloud-guest-utils,ifupdown,isc-dhcp-client,iproute2,ca-certificates,zstd \
  --customize-hook='rm -f "$1"/etc/ssh/ssh_host_*; : > "$1"/etc/machine-id; echo cloud > "$1"/etc/hostname' \
  --customize-hook='echo "LABEL=cloudroot / ext4 defaults 0 1" > "$1"/etc/fstab; rm -f "$1"/etc/resolv.conf' \
  --customize-hook='chroot "$1" passwd --quiet --lock root' \
  --customize-hook='echo "locale: C.UTF-8" > "$1"/etc/cloud/cloud.cfg.d/05-image.cfg' \
  "${SUITE:-bookworm}" root ${MIRROR:+"$MIRROR"}

# Sectors of 512 bytes: 64 MiB of FAT at 2048 with the kernel, then ext4 up to 1500 MiB.
fat=2048 fat_size=131072 root=133120 all=3072000
truncate -s $((all * 512)) disk.raw
printf 'label: dos\nstart=%s, size=%s, type=c, bootable\nstart=%s, type=83\n' $fat $fat_size $root | sfdisk --quiet disk.raw

truncate -s $((fat_size * 512)) fat.img
mkfs.vfat -n BOOT fat.img >/dev/null
syslinux --install fat.img
cat > syslinux.cfg <<'CFG'
DEFAULT linux
PROMPT 0
TIMEOUT 0
LABEL linux
  KERNEL vmlinuz
  APPEND initrd=initrd.img root=LABEL=cloudroot ro console=tty0 console=ttyS0,115200
CFG
mcopy -i fat.img syslinux.cfg ::
mcopy -i fat.img root/boot/vmlinuz-* ::vmlinuz
mcopy -i fat.img root/boot/initrd.img-* ::initrd.img
dd if=fat.img of=disk.raw bs=1M seek=1 conv=notrunc,sparse status=none
dd if=/usr/lib/syslinux/mbr/mbr.bin of=disk.raw bs=440 count=1 conv=notrunc status=none
mke2fs -q -F -t ext4 -b 4096 -L cloudroot -d root -E offset=$((root * 512)) disk.raw $(((all - root) / 8))

qemu-img convert -O qcow2 disk.raw "$to"
