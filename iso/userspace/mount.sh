#!/bin/sh
# Sets this disc up on a machine that runs Linux: its environments mounted at their prefix, its services running from
# there. `sh mount.sh --help` says how; it needs root, a POSIX shell, coreutils (or busybox) and mount.
#
# Nothing of the disc is copied but units. Every path that is made is written to the list `made` in the state folder
# before it is made; --undo removes what is on it, the last first, and so does a run after one that was killed.
set -eu
LC_ALL=C
export LC_ALL
umask 022

usage() {
    cat <<END
usage: sh mount.sh [--dry-run] [--yes] [--no-services] [--undo [--keep-data]]

Without --undo: mounts the environments on this disc at their prefix, now and whenever the disc is put in, and has
systemd run the services while it is there. Shows what it will do, and asks.

  --undo         take all of it away again, the services' data in /var/lib too
  --keep-data    with --undo: leave /var/lib, /var/cache and /var/log of the services, and their users
  --no-services  neither services nor their users
  --no-verify    do not read the whole disc first
  --yes          do not ask
  --dry-run      show what would be done, and stop

exit codes: 0 done · 1 failed · 2 wrong usage · 3 the disc is damaged
END
}

die() { # die MESSAGE [NEXT [CODE]]
    printf 'mount.sh: %s\n' "$1" >&2
    [ -z "${2:-}" ] || printf '  next: %s\n' "$2" >&2
    exit "${3:-1}"
}

say() { printf '%s\n' "$*"; }

# --- what is asked, and of which disc ------------------------------------------------------------------------------

action=setup yes='' dry='' services=yes keep='' verify=yes
while [ $# -gt 0 ]; do
    case $1 in
    --undo) action=undo ;;
    --keep-data) keep=yes ;;
    --no-services) services='' ;;
    --no-verify) verify='' ;;
    --yes | -y) yes=yes ;;
    --dry-run | -n) dry=yes ;;
    --help | -h)
        usage
        exit 0
        ;;
    *) die "what is $1?" "sh mount.sh --help" 2 ;;
    esac
    shift
done
[ -z "$keep" ] || [ "$action" = undo ] || die "--keep-data belongs to --undo" "" 2

here=$(cd "$(dirname "$0")" && pwd -P)
# The state folder keeps this script and what it reads, so that the disc can be undone without the disc.
disc=$here setup=$here/setup
[ -e "$setup/about" ] || die "there is no setup/ beside this script" "run it from the disc" 2

name='' version='' summary='' machine='' label='' prefix='' where='' state='' form='' device='' disc_unit='' unit='' environments=''
while read -r key value; do
    case $key in
    name) name=$value ;;
    version) version=$value ;;
    summary) summary=$value ;;
    machine) machine=$value ;;
    label) label=$value ;;
    prefix) prefix=$value ;;
    where) where=$value ;;
    state) state=$value ;;
    form) form=$value ;;
    device) device=$value ;;
    disc_unit) disc_unit=$value ;;
    unit) unit=$value ;;
    environment) environments="$environments $value" ;;
    esac
done <"$setup/about"

[ "$action" = undo ] || [ "$(uname -m)" = "$machine" ] ||
    die "this machine is $(uname -m), and $name is for $machine" "take the disc of $name for $(uname -m)" 2
units=/etc/systemd/system
[ "$here" != "$state" ] || [ "$action" = undo ] || die "this is what the machine keeps of the disc $label" \
    "sh $state/mount.sh --undo, or run mount.sh from the disc" 2

managed() { [ -d /run/systemd/system ]; } # whether there is systemd to mount and to start

if ! managed; then services=''; fi

# --- what it makes -------------------------------------------------------------------------------------------------

note() { say "$1" >>"$state/made"; } # note PATH: it is about to be made

folders() { # folders PATH: make the folders above it that are not there
    missing='' above=${1%/*}
    while [ "$above" ] && [ ! -d "$above" ]; do
        missing="$above
$missing"
        above=${above%/*}
    done
    printf '%s' "$missing" | while IFS= read -r above; do
        note "$above"
        mkdir "$above"
    done
}

put() { # put SOURCE PLACE: a file of the setup folder at its place
    folders "$2"
    note "$2"
    cp "$1" "$2"
}

link() { # link TARGET PLACE
    folders "$2"
    note "$2"
    ln -s "$1" "$2"
}

each_service() { # a name a line, of those that are set up
    [ -z "$services" ] || cat "$setup/services/names"
}

places() { # what will stand on the machine outside of the state folder, a path a line
    while IFS= read -r path; do say "/$path"; done <"$setup/root.paths"
    managed || return 0
    say "$units/$disc_unit"
    say "$units/$unit"
    each_service | while IFS= read -r service; do say "$units/$service.service"; done
}

refuse_conflicts() {
    found=$(
        places | while IFS= read -r place; do
            if [ -e "$place" ] || [ -L "$place" ]; then say "  $place is there already"; fi
        done
        if [ -e "$prefix" ] && { [ ! -d "$prefix" ] || [ "$(ls -A "$prefix")" ]; }; then
            say "  $prefix is there already, and not empty"
        fi
        each_service | while IFS= read -r service; do
            note=$(getent passwd "$service" | cut -d : -f 5)
            case $(getent passwd "$service") in '' | *:"Service $service":*) ;; *) say "  the user $service is another's ($note)" ;; esac
            for folder in /usr/lib/systemd/system /lib/systemd/system; do
                [ ! -e "$folder/$service.service" ] || say "  the system has a service $service"
            done
        done
    )
    [ -z "$found" ] || {
        say "$found" >&2
        die "what is named above is in the way, and nothing was changed" "move it, or take another machine"
    }
}

make_users() {
    missing=''
    for service in $(each_service); do
        say "$service" >>"$state/users"
        id -u "$service" >/dev/null 2>&1 || missing="$missing $service"
    done
    [ "$missing" ] || return 0
    systemd-sysusers "$setup/sysusers.conf"
}

make_units() {
    put "$setup/disc.mount" "$units/$disc_unit"
    put "$setup/environment.mount" "$units/$unit"
    put "$setup/device.conf" "$units/$device.d/$name.conf"
    link "../$disc_unit" "$units/$device.wants/$disc_unit"
    link "../$unit" "$units/$disc_unit.wants/$unit"
    systemctl daemon-reload
}

make_services() {
    for service in $(each_service); do
        put "$setup/services/$service.service" "$units/$service.service"
        put "$setup/service.conf" "$units/$service.service.d/disc.conf"
        link "../$service.service" "$units/$unit.wants/$service.service"
    done
    systemctl daemon-reload
    failed=''
    for service in $(each_service); do
        systemctl start "$service.service" || failed="$failed $service"
    done
    [ -z "$failed" ] || die "set up, but these services do not start:$failed" "journalctl --unit${failed}"
}

mount_by_hand() {
    folders "$where/."
    folders "$prefix/."
    mount -t iso9660 -o ro,nodev,nosuid "$source" "$where"
    case $form in
    iso9660)
        mount --bind "$where/environment" "$prefix"
        mount -o remount,bind,ro "$prefix"
        ;;
    *) mount -t "$form" -o loop,ro,nodev,nosuid "$where/environment.img" "$prefix" ;;
    esac
}

activate() { # what activation sets, for units, which run no shell: one file for each environment
    mkdir "$state/environments"
    for environment in $environments; do
        folder=${environment#*:}
        [ -d "$folder/etc/conda/activate.d" ] || continue
        command -v bash >/dev/null || {
            say "there is no bash here: what ${environment%%:*}/etc/conda/activate.d sets, the services do without"
            continue
        }
        # shellcheck disable=SC2016 # the inner shell is the one to expand it
        env -i PATH="$folder/bin:/usr/bin:/bin" CONDA_PREFIX="$folder" HOME=/ bash -c '
            before=$(export -p)
            for script in "$CONDA_PREFIX"/etc/conda/activate.d/*.sh; do . "$script" >&2; done
            comm -13 <(sort <<<"$before") <(export -p | sort)' |
            sed -n 's/^declare -x \([A-Za-z_][A-Za-z0-9_]*=".*"\)$/\1/p' >"$state/environments/${environment%%:*}.env"
    done
}

# --- the actions ---------------------------------------------------------------------------------------------------

confirm() { # confirm: ask, unless --yes; with --dry-run, stop
    if [ "$dry" ]; then
        say "Nothing was done (--dry-run)."
        exit 0
    fi
    [ "$(id -u)" = 0 ] || die "mounting needs root's rights" "sudo sh $here/mount.sh"
    [ -z "$yes" ] || return 0
    [ -t 0 ] || die "nobody is there to be asked" "say --yes" 2
    printf 'Go on? [y/N] '
    read -r answer || answer=''
    case $answer in y | Y | yes) ;; *) die "nothing was done" ;; esac
}

verified() {
    say "verifying the disc"
    found=$(cd "$disc" && sha256sum -c SHA256SUMS 2>&1) || {
        say "$found" | while IFS= read -r line; do
            case $line in *': OK' | *WARNING*) ;; *) say "  $line" >&2 ;; esac
        done
        die "the disc is damaged: the files named above are not what its SHA256SUMS says; nothing was changed" \
            "make the disc anew, or use another copy" 3
    }
}

set_up() {
    [ "$(uname -m)" = x86_64 ] || die "this machine is $(uname -m), and the appliance is for x86_64"
    [ -z "$verify" ] || verified
    say "$name $version${summary:+: $summary}"
    if [ -e "$state/made" ]; then
        say "  what an earlier disc or run set up here is taken away first; the services' data stay"
    else
        refuse_conflicts
    fi
    say "  the disc     $label, at $where whenever it is in the machine"
    say "  environment  $prefix, read-only, from the disc ($form)"
    while IFS= read -r path; do say "  file         /$path, a link to the disc"; done <"$setup/root.paths"
    each_service | while IFS= read -r service; do
        say "  service      $service, as the user $service of its own; it runs while the disc is in the machine"
    done
    managed || say "  there is no systemd here: mounted now, not again after a restart, and no services"
    confirm
    source=$(df -P "$disc" | tail -n 1 | cut -d ' ' -f 1)
    if [ -e "$state/made" ]; then
        keep=yes
        take_away
        refuse_conflicts
    fi
    made=''
    for folder in /etc/conda-appliance "${state%/*}" "$state"; do
        [ -d "$folder" ] || {
            mkdir "$folder"
            made="$folder
$made"
        }
    done
    printf '%s' "$made" >"$state/above"
    : >"$state/made"
    cp -r "$disc/mount.sh" "$setup" "$state/"
    while IFS= read -r path; do link "$where/root/$path" "/$path"; done <"$setup/root.paths"
    if managed; then
        [ -d "$prefix" ] || folders "$prefix/."
        make_users
        make_units
        systemctl start "$unit" || die "the disc was not mounted" "systemctl status $disc_unit $unit; sh $state/mount.sh --undo"
        activate
        make_services
    else
        mount_by_hand
        activate
    fi
    say "$name $version runs from the disc. Use it: PATH=$prefix/bin:\$PATH"
    say "Take it away again: sh $state/mount.sh --undo"
}

take_away() {
    if managed; then
        [ ! -e "$state/users" ] || while IFS= read -r service; do
            systemctl stop "$service.service" 2>/dev/null || true
            systemctl reset-failed "$service.service" 2>/dev/null || true
        done <"$state/users"
        systemctl stop "$unit" "$disc_unit" 2>/dev/null || true
    fi
    for place in "$prefix" "$where"; do
        ! mountpoint -q "$place" || umount "$place" || umount -l "$place"
    done
    tac "$state/made" | while IFS= read -r path; do
        if [ -d "$path" ] && [ ! -L "$path" ]; then
            rmdir "$path" 2>/dev/null || true
        else
            rm -f "$path"
        fi
    done
    rmdir "$where" "${where%/*}" 2>/dev/null || true
    ! managed || systemctl daemon-reload
    if [ -z "$keep" ] && [ -e "$state/users" ]; then
        while IFS= read -r service; do
            rm -rf "/var/lib/${service:?}" "/var/cache/${service:?}" "/var/log/${service:?}"
            case $(getent passwd "$service") in *:"Service $service":*) userdel "$service" ;; esac
        done <"$state/users"
    fi
    above=$(cat "$state/above")
    rm -rf "$state"
    printf '%s\n' "$above" | while IFS= read -r folder; do
        [ -z "$folder" ] || rmdir "$folder" 2>/dev/null || true
    done
}

undo() {
    [ -e "$state/made" ] || {
        say "Nothing of the disc $label is set up here."
        exit 0
    }
    say "This unmounts $prefix and removes all that mount.sh made${keep:+; the services\' data stay}"
    [ ! -e "$state/users" ] || [ "$keep" ] || sort -u "$state/users" | while IFS= read -r service; do
        say "  and the user $service with all of /var/lib/$service, /var/cache/$service, /var/log/$service"
    done
    confirm
    take_away
    say "Nothing of it is left${keep:+ but the services\' data}."
}

case $action in
setup) set_up ;;
undo) undo ;;
esac
