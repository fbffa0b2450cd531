# shellcheck shell=sh disable=SC2154 # variables of medium.sh, initramfs-tools and installer.conf
# Writes the appliance's disk image to a disk of this machine (initramfs-tools(7): a boot script that never hands over).
#
# A disk is bootable from the moment its first sector is written, and that is the very last thing that happens: whatever
# ends this before leaves a disk without a partition table, which no firmware starts and which the installer takes for
# one that holds data. A disk that holds anything is only written to when somebody, or the definition, names it.
# shellcheck source=iso/boot/medium.sh
. /scripts/medium

BLOCK=1048576
SOURCE=$MEDIUM/appliance

# installer.conf on the disc says: title; size, the image's, and written, what is not empty of it, in bytes; body, the
# SHA-256 of that; root_start and root_size in bytes; log; unattended, want_model, want_serial, want_path, want_size.

mount_top() { :; }
mount_premount() { :; }
mount_bottom() { :; }

# --- what disks there are ---------------------------------------------------------------------------

# first_line FILE: without the blanks around it; nothing if there is none
first_line() {
    text=
    [ ! -r "$1" ] || read -r text <"$1" 2>/dev/null || :
    echo "$text"
}

serial_of() {
    for file in "/sys/block/$1/serial" "/sys/block/$1/device/serial"; do
        text=$(first_line "$file")
        [ -z "$text" ] || { echo "$text"; return 0; }
    done
    # A USB device's own, some folders above the disk it shows.
    above=$(cd "/sys/block/$1/device" 2>/dev/null && pwd -P)
    while [ -n "$above" ]; do
        if [ -e "$above/idVendor" ]; then
            first_line "$above/serial"
            return 0
        fi
        above=${above%/*}
    done
    # SCSI and SATA: page 0x80 of the vital product data, four bytes of head before it (SPC-4, 7.8.15).
    [ -r "/sys/block/$1/device/vpd_pg80" ] || return 0
    dd if="/sys/block/$1/device/vpd_pg80" bs=1 skip=4 status=none 2>/dev/null | tr -cd '[:alnum:]._-'
    echo
}

model_of() {
    text=$(first_line "/sys/block/$1/device/model")
    echo "${text:-a disk without a model}"
}

size_of() {
    read -r sectors <"/sys/block/$1/size"
    echo $((sectors * 512))
}

# human BYTES
human() {
    tenths=$(($1 * 10 / 1073741824))
    echo "$((tenths / 10)).$((tenths % 10)) GiB"
}

# holds NAME: what is on a disk, in words; nothing if it is empty
holds() {
    found=
    wipefs --no-act --noheadings --output TYPE "/dev/$1" >/run/appliance/signatures 2>/dev/null || :
    while read -r kind; do
        case " $found " in *" $kind "*) ;; *) found="${found:+$found }$kind" ;; esac
    done </run/appliance/signatures
    count=0
    for place in "/sys/block/$1/$1"*; do
        [ ! -e "$place/partition" ] || count=$((count + 1))
    done
    [ "$count" = 0 ] || found="$found, $count partitions"
    if [ -n "$found" ]; then echo "$found"; return 0; fi
    end=$(($(size_of "$1") - BLOCK))
    mark=$(dd if="/dev/$1" bs=512 iflag=skip_bytes skip="$end" count=1 status=none 2>/dev/null | tr -d '\000')
    if [ "$mark" = "$unfinished" ]; then echo "$unfinished"; return 0; fi
    # What is encrypted without a header has no signature, and is not empty.
    part=0
    while [ "$part" -le 64 ]; do
        if ! dd if="/dev/$1" bs=65536 iflag=skip_bytes skip=$((end * part / 64)) count=1 status=none 2>/dev/null |
            cmp -s -n 65536 - /dev/zero; then
            echo "something without a name"
            return 0
        fi
        part=$((part + 1))
    done
}

# may_go CONTENTS: whether what a disk holds is nothing, or our own and worth nothing
may_go() { [ -z "$1" ] || [ "$1" = "$unfinished" ]; }

# refused NAME: why a disk cannot take the image; nothing if it can
refused() {
    [ "$(first_line "/sys/block/$1/ro")" != 1 ] || { echo "it is read-only"; return 0; }
    block=$(first_line "/sys/block/$1/queue/logical_block_size")
    [ "$block" = 512 ] || { echo "its sectors have $block bytes, and the image is for 512"; return 0; }
    [ "$(size_of "$1")" -ge "$size" ] || echo "too small: the image takes $(human "$size")"
}

# named NAME: whether the definition means this disk
named() {
    [ -n "$want_model$want_serial$want_path$want_size" ] || return 1
    [ -z "$want_path" ] || [ "$want_path" = "/dev/$1" ] || return 1
    [ -z "$want_serial" ] || [ "$want_serial" = "$(serial_of "$1")" ] || return 1
    [ -z "$want_model" ] || [ "$want_model" = "$(model_of "$1")" ] || return 1
    [ -n "$want_size" ] || return 0
    # A disk of "500 GB" never has exactly so many: within two in a hundred.
    far=$(($(size_of "$1") - want_size))
    [ $((${far#-} * 50)) -le "$want_size" ]
}

# look: → $fit, $empty, $meant: names of disks that can take the image, of those the empty ones and those that are
# meant by the definition; every disk is shown
look() {
    fit='' empty='' meant=''
    say ""
    say "The disks of this machine:"
    for place in /sys/block/*; do
        name=${place##*/}
        case $name in loop* | ram* | zram* | sr* | fd* | dm-* | md* | nbd*) continue ;; esac
        [ "$medium" != "/dev/$name" ] || continue
        [ "$(size_of "$name")" -gt 0 ] || continue
        about="/dev/$name  $(human "$(size_of "$name")")  $(model_of "$name")  serial $(serial_of "$name")"
        reason=$(refused "$name")
        if [ -n "$reason" ]; then
            say "  --  $about: $reason"
            continue
        fi
        fit="$fit $name"
        ! named "$name" || meant="$meant $name"
        contents=$(holds "$name")
        ! may_go "$contents" || empty="$empty $name"
        if [ -n "$contents" ]; then
            say "      $about: holds $contents"
        else
            say "      $about: empty"
        fi
    done
    [ -n "$fit" ] || say "None of them can take the appliance."
}

# one NAME…: the name, if it is only one
one() { [ "$#" = 1 ] && echo "$1"; }

# choose: → $target; asks until there is one
choose() {
    target=
    while [ -z "$target" ]; do
        look
        if [ "$unattended" = yes ]; then
            # shellcheck disable=SC2086 # names, a word each
            if [ -n "$want_model$want_serial$want_path$want_size" ]; then
                target=$(one $meant) || say "The definition names a disk, and${meant:- none} is it."
            else
                target=$(one $empty) || say "Without anybody to ask, one empty disk is needed, and here are:${empty:- none}."
            fi
            [ -z "$target" ] || return 0
        fi
        ask "Name of the disk to install to, Enter to look again, off to switch off:"
        case $answer in
        "") ;;
        off) poweroff -f ;;
        *) consider "${answer#/dev/}" ;;
        esac
    done
}

# consider NAME: → $target, after one more question if the disk holds anything
consider() {
    case " $fit " in
    *" $1 "*) ;;
    *)
        say "There is no such disk that can take the appliance: $1"
        return 0
        ;;
    esac
    contents=$(holds "$1")
    if ! may_go "$contents"; then
        say "Everything on /dev/$1 will be lost. It holds $contents."
        ask "Type \"erase $1\" to go on:"
        [ "$answer" = "erase $1" ] || { say "Nothing was written."; return 0; }
    fi
    target=$1
}

# --- writing ----------------------------------------------------------------------------------------

# broken WHAT: the disk does not do what it should; back to the question
broken() {
    say ""
    say "$1 failed on $disk: the disk or its cable is broken. It has no partition table now, and does not start."
    dmesg | tail -n 5 >/run/appliance/kernel
    while read -r line; do say "  $line"; done </run/appliance/kernel
    unattended=no
    return 1
}

# mark TEXT: at the beginning of the disk's last MiB, so that what power failed in is known as such
mark() {
    echo "$1" | dd of="$disk" bs=512 seek=$((total / 512 - 2048)) conv=sync,notrunc,nocreat,fsync status=none 2>/dev/null
}

# zero START LENGTH: in bytes
zero() { blkdiscard --zeroout --offset "$1" --length "$2" "$disk" 2>/dev/null; }

# install: the image to $disk. Fails, having said why, when the disk does.
install() {
    disk=/dev/$target
    total=$(size_of "$target")
    say "Installing $title to $disk."
    # What was there ends here, first of all what would start: both ends, where partition tables are.
    { zero 0 $BLOCK && zero $((total - BLOCK)) $BLOCK && mark "$unfinished"; } || { broken "Clearing"; return 1; }
    # A file system has places that it never wrote and takes for empty.
    at=$BLOCK
    while [ "$at" -lt "$size" ]; do
        part=$((size - at < 268435456 ? size - at : 268435456))
        zero "$at" "$part" || { broken "Clearing"; return 1; }
        at=$((at + part))
        progress "Clearing $((at * 100 / size)) %"
    done
    say ""
    write_body || { broken "Writing"; return 1; }
    say ""
    [ "$(read_body | sha256sum)" = "$body  -" ] || { broken "Reading back what was written"; return 1; }
    say ""
    say "Written, read back, and the same."
    keep_log || { broken "Writing the log"; return 1; }
    write_table || { broken "Writing the partition table"; return 1; }
}

write_body() {
    rm -f /run/appliance/torn
    { zstd -dcq "$SOURCE/disk.zst" || : >/run/appliance/torn; } | {
        while read -r start length reached <&3; do
            dd of="$disk" bs=$BLOCK iflag=fullblock,count_bytes oflag=seek_bytes,direct seek="$start" count="$length" \
                conv=notrunc,nocreat status=none 2>/dev/null || exit 1
            progress "Writing $((reached * 100 / written)) %"
        done 3<"$SOURCE/disk.map"
    } || return 1
    [ ! -e /run/appliance/torn ] || { say "The medium cannot be read to its end."; return 1; }
    blockdev --flushbufs "$disk"
}

read_body() {
    while read -r start length reached <&3; do
        dd if="$disk" bs=$BLOCK iflag=skip_bytes,count_bytes,direct skip="$start" count="$length" status=none 2>/dev/null ||
            return 1
        progress "Reading back $((reached * 100 / written)) %"
    done 3<"$SOURCE/disk.map"
}

# keep_log: on the machine, whose file system grows to the disk when it starts. Its name says which disc this was.
keep_log() {
    say "The log is on the machine: $log"
    loop=$(losetup --find --show --offset "$root_start" --sizelimit "$root_size" "$disk") || return 1
    mkdir -p /run/appliance/root
    mount -t ext4 -o rw "$loop" /run/appliance/root || return 1
    mkdir -p "/run/appliance/root${log%/*}"
    cat /run/appliance/log >"/run/appliance/root$log" || return 1
    umount /run/appliance/root && losetup -d "$loop"
}

# write_table: the partition table, whose root partition reaches to the disk's end; the first sector last
write_table() {
    table=/run/appliance/table
    rm -f $table
    truncate --size "$total" $table
    dd if="$SOURCE/disk.first" of=$table bs=$BLOCK conv=notrunc status=none
    sfdisk --dump $table 2>/dev/null | while read -r line; do
        case $line in
        last-lba:*) ;;
        *'name="root"'*) echo "${line%%size=*}${line#*size=*,}" ;;
        *) echo "$line" ;;
        esac
    done >/run/appliance/script
    sfdisk --quiet --no-reread --no-tell-kernel $table </run/appliance/script >/dev/null 2>&1 || return 1
    # sfdisk may have its own idea of the code before the table.
    dd if="$SOURCE/disk.first" of=$table bs=440 count=1 conv=notrunc status=none
    end=$((total / 512 - 33))
    copy $end 33 && copy 1 2047 && copy 0 1 && mark "" && blockdev --flushbufs "$disk"
}

# copy SECTOR COUNT: from the table's file to the disk, and not on before it is there
copy() {
    dd if="$table" of="$disk" bs=512 skip="$1" seek="$1" count="$2" conv=notrunc,nocreat,fsync status=none 2>/dev/null
}

mountroot() {
    mkdir -p /run/appliance
    find_consoles
    modprobe -qa loop ext4
    find_medium
    # shellcheck source=/dev/null
    . "$SOURCE/installer.conf"
    unfinished="an unfinished installation by this disc (${log##*-})"
    say ""
    say "$title: this disc installs it on a disk of this machine."
    check_medium || fail "The medium is damaged, and nothing was written: write it anew, or use another one."
    while :; do
        choose
        install && break
    done
    say "Installed. The machine starts again now; the disc may be taken out or stay in."
    sleep 3
    restart
}
