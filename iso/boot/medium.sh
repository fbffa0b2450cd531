# shellcheck shell=sh disable=SC2034 # what others use
# What the discs that boot have in common, in their initramfs: finding the medium, reading it back, talking to whoever
# stands before the machine. Its shell is klibc's, and its programs are few: those of the hook in templates/disc.

PATH=/usr/lib/appliance:$PATH
export PATH
MEDIUM=/run/appliance/medium

# word NAME: the value of NAME=VALUE on the kernel's command line
word() {
    read -r words </proc/cmdline
    for one in $words; do
        case $one in "$1"=*) echo "${one#*=}" ;; esac
    done
}

# has NAME: whether the kernel's command line has the word
has() {
    read -r words </proc/cmdline
    case " $words " in *" $1 "*) return 0 ;; esac
    return 1
}

# Screen and serial port alike: who answers first is heard.
consoles=
find_consoles() {
    while read -r name rest; do
        [ ! -c "/dev/$name" ] || consoles="$consoles /dev/$name"
    done </proc/consoles
}

# say TEXT…: a line on every console, and in the log
say() {
    for console in $consoles; do printf '%s\r\n' "$*" >"$console" 2>/dev/null || :; done
    echo "$*" >>/run/appliance/log
}

# progress TEXT: the same line again and again; the log has none of it
progress() {
    for console in $consoles; do printf '\r%s ' "$*" >"$console" 2>/dev/null || :; done
}

# ask QUESTION: → $answer, from the console where somebody answers first
ask() {
    for console in $consoles; do printf '%s ' "$1" >"$console" 2>/dev/null || :; done
    rm -f /run/appliance/answer
    mkfifo /run/appliance/answer
    readers=
    for console in $consoles; do
        { IFS= read -r line <"$console" && printf '%s\n' "$line" >/run/appliance/answer; } &
        readers="$readers $!"
    done
    answer=
    IFS= read -r answer </run/appliance/answer || sleep 1
    for reader in $readers; do kill "$reader" 2>/dev/null || :; done
    echo "$1 $answer" >>/run/appliance/log
}

# restart: never returns
restart() {
    sync
    reboot -f
    while :; do sleep 60; done
}

# fail TEXT…: each on a line of its own; never returns
fail() {
    say ""
    for text in "$@"; do say "$text"; done
    ask "Press Enter to start the machine again."
    restart
}

# drivers: of devices that came while others were looked at
drivers() {
    /scripts/init-top/appliance-drivers
}

# find_medium: mounts the disc that this initramfs came from, and no other, at $MEDIUM; $medium is its device.
# By a loop device: while a stick itself is mounted, no partition of it can be.
find_medium() {
    id=$(word appliance.disc)
    mkdir -p "$MEDIUM"
    modprobe -qa isofs loop
    tries=0
    while [ "$tries" -lt 60 ]; do
        drivers
        for place in /sys/block/*; do
            name=${place##*/}
            case $name in loop* | ram* | zram* | fd* | dm-* | md*) continue ;; esac
            [ "$(blkid -p -o value -s TYPE "/dev/$name" 2>/dev/null)" = iso9660 ] || continue
            loop=$(losetup --find --show --read-only "/dev/$name") || continue
            if mount -t iso9660 -o ro "$loop" "$MEDIUM" 2>/dev/null; then
                if [ -e "$MEDIUM/appliance/$id" ]; then
                    medium=/dev/$name
                    return 0
                fi
                umount "$MEDIUM"
            fi
            losetup -d "$loop"
        done
        tries=$((tries + 1))
        sleep 1
    done
    fail "The disc that this machine started from is not found any more." \
        "A stick that the kernel has no driver for, or that was pulled out? (disc $id)"
}

# check_medium: every file against the list of what it was when the disc was made
check_medium() {
    say "Reading the whole medium and comparing it with SHA256SUMS ..."
    if (cd "$MEDIUM" && sha256sum --check --quiet SHA256SUMS) >/run/appliance/bad 2>&1; then
        say "The medium is what it was made: every file has its checksum."
        return 0
    fi
    while read -r line; do say "  $line"; done </run/appliance/bad
    return 1
}
