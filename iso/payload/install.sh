#!/bin/sh
# Installs the appliance on this disc on a machine that runs Linux. `sh install.sh --help` says how; it needs a POSIX
# shell, coreutils (or busybox) and tar, and no Python.
#
# Everything lands in one folder beside the prefix, PARENT/.NAME.appliance, a folder for each version. Whatever stands
# elsewhere (the prefix itself, the definition's files, units) is a symbolic link that leads through the link `current`
# in there. A version is unpacked, relocated and verified beside the one that runs; then `current` is renamed over in
# one rename(2), and with it all of it changes at once. Killed at any point, the old or the new version is whole, and
# the next run clears away what is left.
set -eu
LC_ALL=C
export LC_ALL
umask 022
tab=$(printf '\t')

usage() {
    cat <<END
usage: sh install.sh [--prefix DIR] [--yes] [--dry-run] [ACTION]

Without an action: installs the appliance on this disc, or upgrades the one that is there. Shows what it will do, and
asks. Run again it does nothing, or mends what is damaged.

  --check        compare what is installed with what was installed, file by file; changes nothing
  --rollback     go back to the version before (and with another --rollback, forth again)
  --uninstall    remove it without trace, its services' data in /var/lib too
  --keep-data    with --uninstall: leave /var/lib, /var/cache and /var/log of the services, and their users

  --prefix DIR   where the environment lives; default: as root where it was built for, else in your home
  --yes          do not ask
  --dry-run      show what would be done, and stop
  --no-services  install no services and make no users

As root it is installed for the machine: files at their places, a systemd service and a user for each service. As
anybody else it is installed for that user alone, below --prefix, with services of systemd's user manager.

examples:
  sh install.sh --dry-run                  what would happen?
  sudo sh install.sh                       install, or upgrade
  sh install.sh --prefix ~/hello           without root's rights
  sudo sh install.sh --rollback --yes      the version before again

exit codes: 0 done · 1 failed · 2 wrong usage · 3 the disc is damaged · 5 --check found differences
END
}

die() { # die MESSAGE [NEXT [CODE]]
    printf 'install.sh: %s\n' "$1" >&2
    [ -z "${2:-}" ] || printf '  next: %s\n' "$2" >&2
    exit "${3:-1}"
}

say() { printf '%s\n' "$*"; }

# --- what is asked, and of which appliance -------------------------------------------------------------------------

action=install prefix='' yes='' dry='' services=yes keep=''
while [ $# -gt 0 ]; do
    case $1 in
    --prefix)
        [ $# -ge 2 ] || die "--prefix needs a folder" "sh install.sh --help" 2
        prefix=$2
        shift
        ;;
    --prefix=*) prefix=${1#*=} ;;
    --yes | -y) yes=yes ;;
    --dry-run | -n) dry=yes ;;
    --no-services) services='' ;;
    --keep-data) keep=yes ;;
    --check | --rollback | --uninstall) action=${1#--} ;;
    --help | -h)
        usage
        exit 0
        ;;
    *) die "what is $1?" "sh install.sh --help" 2 ;;
    esac
    shift
done
[ -z "$keep" ] || [ "$action" = uninstall ] || die "--keep-data belongs to --uninstall" "" 2

here=$(cd "$(dirname "$0")" && pwd -P)
# A version that is installed keeps this script: there it knows no disc, only what is installed.
disc=$here data=$here/installer
[ -e "$data/about" ] || disc='' data=$here
[ -e "$data/about" ] || die "there is no installer/ beside this script" "run it from the disc, or from a whole copy of it" 2

# shellcheck source=relocate.sh
. "$data/relocate.sh"

name='' version='' summary='' machine='' id='' built='' longest=0 fixed='' kilobytes=0 packages=0 environments=''
while read -r key value; do
    case $key in
    name) name=$value ;;
    version) version=$value ;;
    summary) summary=$value ;;
    machine) machine=$value ;;
    id) id=$value ;;
    prefix) built=$value ;;
    longest) longest=$value ;;
    fixed) fixed=$value ;;
    kilobytes) kilobytes=$value ;;
    packages) packages=$value ;;
    environment) environments="$environments $value" ;;
    esac
done <"$data/about"

[ "$action" != install ] || [ "$(uname -m)" = "$machine" ] ||
    die "this machine is $(uname -m), and $name is for $machine" "take the disc of $name for $(uname -m)" 2

root=''
[ "$(id -u)" != 0 ] || root=yes
[ -e /usr/lib/systemd/systemd ] || [ -e /lib/systemd/systemd ] || services=''
if [ -z "$prefix" ]; then
    if [ -z "$disc" ] && [ -e "$here/prefix" ]; then
        prefix=$(cat "$here/prefix")
    elif [ "$root" ]; then
        prefix=$built
    else
        prefix=${XDG_DATA_HOME:-${HOME:?}/.local/share}/$name
    fi
fi
while [ "$prefix" != "${prefix%/}" ]; do prefix=${prefix%/}; done
case $prefix/ in
/*) ;;
*) die "--prefix $prefix: not an absolute path" "sh install.sh --prefix $PWD/$prefix" 2 ;;
esac
case $prefix/ in
/ | */../* | */./* | *//*) die "--prefix ${prefix:-/}: not a plain absolute path" "name a folder such as /opt/$name" 2 ;;
*[!A-Za-z0-9/._+@=,~-]*)
    die "--prefix $prefix: the environment's programs name their prefix in ways that allow only letters, digits and /._+@=,~-" \
        "name another folder with --prefix" 2
    ;;
esac

[ -z "$root" ] || [ -z "$services" ] || case $prefix/ in
/home/* | /root/* | /run/* | /tmp/* | /var/tmp/*)
    die "--prefix $prefix: services are fenced off from there" "name another folder, say --no-services, or install it as that user" 2
    ;;
esac

parent=${prefix%/*} base=${prefix##*/}
store=$parent/.$base.appliance
if [ "$root" ]; then
    units=/etc/systemd/system wanted=multi-user.target.wants
else
    units=${XDG_CONFIG_HOME:-${HOME:-}/.config}/systemd/user wanted=default.target.wants
fi

current() { # the folder's name of the version in use, or nothing
    [ ! -L "$store/current" ] || readlink "$store/current"
}

told() { # told FILE KEY: what an `about` says
    while read -r key value; do
        [ "$key" != "$2" ] || printf '%s' "$value"
    done <"$1"
}

# --- the machine's service manager ---------------------------------------------------------------------------------

control() { # control WORDS: systemctl of the machine or the user, where it runs; else nothing
    if [ "$root" ]; then
        [ ! -d /run/systemd/system ] || systemctl "$@"
    elif managed; then
        systemctl --user "$@"
    fi
}

managed() { # whether a service manager can be asked
    if [ "$root" ]; then
        [ -d /run/systemd/system ]
    else
        [ -d "${XDG_RUNTIME_DIR:-/run/user/$(id -u)}/systemd" ] && systemctl --user show-environment >/dev/null 2>&1
    fi
}

account() { getent passwd "$1" 2>/dev/null || true; }

make_users() { # make_users VERSION: a user without rights for each of its services
    { [ "$root" ] && has_units "$1"; } || return 0
    missing=''
    while read -r service _; do
        # Remembered first: what a killed run made is removed with the rest.
        say "$service" >>"$store/users"
        id -u "$service" >/dev/null 2>&1 || missing="$missing $service"
    done <"$1/services"
    sort -u "$store/users" >"$store/users.tmp"
    mv -f "$store/users.tmp" "$store/users"
    [ "$missing" ] || return 0
    if command -v systemd-sysusers >/dev/null; then
        systemd-sysusers "$1/sysusers.conf"
    else
        for service in $missing; do
            useradd --system --no-create-home --home-dir "/var/lib/$service" --shell /usr/sbin/nologin \
                --comment "Service $service" "$service"
        done
    fi
}

remove_users() {
    [ -e "$store/users" ] || return 0
    while read -r service; do
        case $(account "$service") in *:"Service $service":*) ;; *) continue ;; esac
        userdel "$service" || say "the user $service is still there: userdel $service"
    done <"$store/users"
}

# --- links from the rest of the machine into a version -------------------------------------------------------------

has_units() { # has_units VERSION: whether its services are the service manager's; of a disc, whether they would be
    [ -e "$1/units" ] || { [ "$disc" ] && [ "$1" = "$data" ] && [ "$services" ] && [ -s "$1/services" ]; }
}

places() { # places VERSION: a line `TARGET<tab>PLACE` for each link outside of the store
    printf '%s\t%s\n' ".$base.appliance/current/tree" "$prefix"
    if [ "$root" ]; then
        while IFS= read -r path; do
            printf '%s\t%s\n' "$store/current/root/$path" "/$path"
        done <"$1/root.paths"
    fi
    has_units "$1" || return 0
    while read -r service _; do
        printf '%s\t%s\n' "$store/current/units/$service.service" "$units/$service.service"
        printf '%s\t%s\n' "$units/$service.service" "$units/$wanted/$service.service"
    done <"$1/services"
}

is_link() { [ -L "$2" ] && [ "$(readlink "$2")" = "$1" ]; } # is_link TARGET PLACE

refuse_conflicts() { # refuse_conflicts VERSION: what stands in the way of its links and users, all at once
    found=$(
        places "$1" | while IFS=$tab read -r target place; do
            { [ ! -e "$place" ] && [ ! -L "$place" ]; } || is_link "$target" "$place" ||
                say "  $place is there already, and not from this appliance"
        done
        { [ "$root" ] && has_units "$1"; } || exit 0
        while read -r service _; do
            for folder in /usr/lib/systemd/system /lib/systemd/system; do
                [ ! -e "$folder/$service.service" ] || say "  the system has a service $service of its own"
            done
            case $(account "$service") in
            '' | *:"Service $service":*) ;;
            *) say "  the system has a user $service of its own" ;;
            esac
        done <"$1/services"
    )
    [ -z "$found" ] || die "this machine has things where the appliance wants to be, and nothing was changed:
$found" "move them away, or install elsewhere with --prefix, or with --no-services"
}

make_folder() { # make_folder PATH: with those above it; what was missing is remembered, and removed by --uninstall
    [ ! -d "$1" ] || return 0
    make_folder "$(dirname "$1")"
    say "$1" >>"$store/folders"
    mkdir "$1"
}

make_links() { # make_links VERSION
    places "$1" >"$store/places.tmp"
    while IFS=$tab read -r target place; do
        is_link "$target" "$place" || {
            make_folder "$(dirname "$place")"
            ln -s "$target" "$place"
        }
    done <"$store/places.tmp"
    rm -f "$store/places.tmp"
}

remove_folders() { # remove_folders: those in $folders, as far as nothing else is in them
    say "$folders" | while IFS= read -r folder; do
        [ -z "$folder" ] || rmdir "$folder" 2>/dev/null || true
    done
}

remove_links() { # remove_links VERSION [KEPT]: those that the version KEPT has not got too
    { [ -z "${2:-}" ] || places "$2"; } >"$store/kept.tmp"
    places "$1" >"$store/places.tmp"
    while IFS=$tab read -r target place; do
        while IFS=$tab read -r _ other; do
            [ "$other" != "$place" ] || continue 2
        done <"$store/kept.tmp"
        ! is_link "$target" "$place" || rm -f "$place"
    done <"$store/places.tmp"
    rm -f "$store/kept.tmp" "$store/places.tmp"
}

point() { # point VERSION-NAME: `current` leads there from now on, by one rename(2)
    rm -rf "$store/switch.tmp"
    mkdir "$store/switch.tmp"
    ln -s "$1" "$store/switch.tmp/current"
    # Into the folder, not onto the link: every mv then renames over the link, which `mv -T` alone would also do.
    mv -f "$store/switch.tmp/current" "$store/"
    rmdir "$store/switch.tmp"
}

# --- a new version, beside the one in use --------------------------------------------------------------------------

fill() { # fill FILE TO: with this machine's paths where the file says @CONDA_APPLIANCE_…@
    while IFS= read -r line; do
        swap "$line" @CONDA_APPLIANCE_PREFIX@ "$prefix"
        swap "$swapped" @CONDA_APPLIANCE_STORE@ "$store"
        say "$swapped"
    done <"$1" >"$2"
}

swap() { # swap TEXT MARK VALUE: the answer is in $swapped
    swapped='' rest=$1
    while :; do
        case $rest in
        *"$2"*)
            swapped=$swapped${rest%%"$2"*}$3
            rest=${rest#*"$2"}
            ;;
        *) break ;;
        esac
    done
    swapped=$swapped$rest
}

activate() { # activate FOLDER: what activation sets, for units, which run no shell: one file for each environment
    mkdir "$1/environments"
    for environment in $environments; do
        folder=$1/tree${environment#*:}
        [ -d "$folder/etc/conda/activate.d" ] || continue
        command -v bash >/dev/null || {
            say "there is no bash here: what ${environment%%:*}/etc/conda/activate.d sets, the services do without"
            continue
        }
        # shellcheck disable=SC2016 # the inner shell is the one to expand it
        env -i PATH="$folder/bin:/usr/bin:/bin" CONDA_PREFIX="$folder" HOME=/ bash -c '
            before=$(export -p)
            for script in "$CONDA_PREFIX"/etc/conda/activate.d/*.sh; do . "$script" >&2; done
            comm -13 <(sort <<<"$before") <(export -p | sort)' >"$1/exported.tmp"
        while IFS= read -r line; do
            line=${line#declare -x }
            case $line in
            [A-Za-z_]*=\"*\")
                swap "$line" "$1/tree" "$prefix"
                say "$swapped"
                ;;
            esac
        done <"$1/exported.tmp" >"$1/environments/${environment%%:*}.env"
        rm -f "$1/exported.tmp"
    done
}

sum_up() { # sum_up FOLDER: `sums` for the files as they are now
    cut -c 67- "$1/sums" >"$1/names.tmp"
    (
        cd "$1"
        set --
        while IFS= read -r file; do
            set -- "$@" "$file"
            [ $# -lt 500 ] || {
                sha256sum "$@"
                set --
            }
        done
        [ $# = 0 ] || sha256sum "$@"
    ) <"$1/names.tmp" >"$1/sums.tmp"
    mv "$1/sums.tmp" "$1/sums"
    rm -f "$1/names.tmp"
}

stage() { # stage: unpack this disc into $store/new, for $prefix
    new=$store/new
    rm -rf "$new"
    mkdir "$new" "$new/unpacked" "$new/root"
    cp "$data/about" "$data/sums" "$data/links" "$data/paths" "$data/root.paths" "$data/services" \
        "$data/sysusers.conf" "$data/relocations" "$data/relocate.sh" "$data/bytecode.py" "$disc/install.sh" "$new/"
    chmod u+w "$new"/*
    say "$prefix" >"$new/prefix"
    say "unpacking"
    tar -x -f "$disc/environment.tar" -C "$new/unpacked"
    mv "$new/unpacked$built" "$new/tree"
    rm -rf "$new/unpacked"
    tar -x -f "$data/root.tar" -C "$new/root"
    check_sums "$new" || die "what was unpacked is not what the disc holds" "is the disk, or the memory, of this machine sound?"
    for environment in $environments; do
        python=$new/tree${environment#*:}/bin/python
        [ ! -e "$python" ] || message=$("$python" -I -S -B -c pass 2>&1) ||
            die "the environment's programs do not run on this machine, and nothing was changed: $message" \
                "it needs a system at least as new as the one that the appliance is made for"
    done
    if [ "$prefix" != "$built" ]; then
        say "relocating from $built to $prefix"
        relocate "$new/tree" "$new"
        sum_up "$new"
    fi
    activate "$new"
    if [ "$services" ] && [ -s "$new/services" ]; then
        mkdir "$new/units"
        from=user
        [ -z "$root" ] || from=system
        while read -r service _; do
            fill "$data/$from/$service.service" "$new/units/$service.service"
            (cd "$new" && sha256sum "units/$service.service") >>"$new/sums"
        done <"$new/services"
    fi
}

check_sums() { # check_sums FOLDER: names what is not as its `sums` says
    found=$(cd "$1" && sha256sum -c sums 2>&1) && return 0
    say "$found" | while IFS= read -r line; do
        case $line in
        *': OK' | *WARNING*) ;;
        *) say "  $line" ;;
        esac
    done
    return 1
}

check() { # check FOLDER: an installed version against its own lists; findings, and whether there were none
    sound=0
    check_sums "$1" || sound=1
    while IFS=$tab read -r target path; do
        is_link "$target" "$1/tree/$path" || {
            say "  tree/$path: no longer a link to $target"
            sound=1
        }
    done <"$1/links"
    # What is there and listed twice comes thrice; what is only there comes once. (busybox need not have comm.)
    extra=$(cd "$1/tree" && du -a -l . | cut -f 2- | cat - "$1/paths" "$1/paths" | sort | uniq -u)
    [ -z "$extra" ] || {
        say "$extra" | while IFS= read -r path; do say "  tree/${path#./}: of no package"; done
        sound=1
    }
    return $sound
}

# --- the actions ---------------------------------------------------------------------------------------------------

confirm() { # confirm: ask, unless --yes; with --dry-run, stop
    if [ "$dry" ]; then
        say "Nothing was done (--dry-run)."
        exit 0
    fi
    [ -z "$yes" ] || return 0
    [ -t 0 ] || die "nobody is there to be asked" "say --yes" 2
    printf 'Go on? [y/N] '
    read -r answer || answer=''
    case $answer in y | Y | yes) ;; *) die "nothing was done" ;; esac
}

hold() { # hold: this run alone works in the store; a dead run's hold is taken over
    while ! ln -s "$$" "$store/lock" 2>/dev/null; do
        other=$(readlink "$store/lock" || true)
        [ -z "$other" ] || ! kill -0 "$other" 2>/dev/null || die "another run (process $other) is at work here" "wait for it to end"
        rm -f "$store/lock"
    done
    trap release EXIT
    trap 'exit 130' INT TERM HUP
}

release() { # release: at the end of a run, however it ends: a version that was not finished goes, and an empty store
    [ -d "$store" ] || return 0
    rm -rf "$store/new"
    if [ -z "$(current)" ] && [ -z "$(versions)" ]; then
        folders=$(tac "$store/folders")
        rm -rf "$store"
        remove_folders
    else
        rm -f "$store/lock"
    fi
}

versions() { # the versions in the store, a name a line
    for folder in "$store"/*/about; do
        [ ! -e "$folder" ] || case $folder in
        "$store/new/about" | "$store/current/about") ;;
        *) basename "$(dirname "$folder")" ;;
        esac
    done
}

go_to() { # go_to VERSION-NAME: make it the one in use
    made=$store/$1 old=$(current)
    make_users "$made"
    make_links "$made"
    if [ "$old" ] && [ "$old" != "$1" ]; then
        say "$old" >"$made/before.tmp"
        mv -f "$made/before.tmp" "$made/before"
    fi
    sync
    point "$1"
    finish
}

clear_away() { # clear_away: what is neither the version in use nor the one before it, with its links and services
    now=$(current) before=''
    [ ! -e "$store/$now/before" ] || before=$(cat "$store/$now/before")
    versions | while IFS= read -r one; do
        [ "$one" != "$now" ] || continue
        [ ! -e "$store/$one/units" ] || while read -r service _; do
            [ -e "$store/${now:-none}/units/$service.service" ] || control stop "$service.service" || true
        done <"$store/$one/services"
        remove_links "$store/$one" "${now:+$store/$now}"
        [ "$one" = "$before" ] || rm -rf "${store:?}/$one"
    done
    rm -rf "$store/new" "$store"/*.tmp
}

finish() { # finish: what follows the switch; done again when a run was killed before its end
    clear_away
    failed=''
    if [ -e "$store/$now/units" ]; then
        control daemon-reload
        while read -r service _; do
            control restart "$service.service" || failed="$failed $service"
        done <"$store/$now/services"
    fi
    say "$now" >"$store/finished.tmp"
    mv -f "$store/finished.tmp" "$store/finished"
    [ -z "$failed" ] || die "installed, but these services do not start:$failed" \
        "journalctl --unit${failed}; back to the version before: sh $store/current/install.sh --rollback"
}

finished() { [ "$(current)" ] && [ "$(cat "$store/finished" 2>/dev/null)" = "$(current)" ]; }

tell_use() {
    say "Use it: PATH=$prefix/bin:\$PATH"
    if [ -s "$store/current/services" ] && [ ! -e "$store/current/units" ]; then
        say "No services were installed (there is no systemd here, or --no-services); start them by hand:"
        while read -r service _ command; do
            swap "$command" @CONDA_APPLIANCE_PREFIX@ "$prefix"
            swap "$swapped" @CONDA_APPLIANCE_STORE@ "$store"
            say "  $service: $swapped"
        done <"$store/current/services"
    elif [ -s "$store/current/services" ] && ! managed; then
        if [ "$root" ]; then
            say "The services start with the machine."
        else
            say "systemd's user manager does not answer here. Log in as this user, then: systemctl --user daemon-reload;"
            while read -r service _; do say "  systemctl --user start $service"; done <"$store/current/services"
        fi
    fi
    if [ -z "$root" ] && [ -e "$store/current/units" ]; then
        say "To start services with the machine and not with your login: loginctl enable-linger"
    fi
    say "Check it: sh $store/current/install.sh --check; remove it: sh $store/current/install.sh --uninstall"
}

install() {
    [ "$disc" ] || die "this is an installed version, and no disc" "run install.sh from the disc" 2
    [ "$(uname -m)" = x86_64 ] || die "this machine is $(uname -m), and the appliance is for x86_64"
    if [ "$prefix" != "$built" ]; then
        [ -z "$fixed" ] || die "--prefix $prefix: this environment cannot live elsewhere than at $built ($fixed)" \
            "install it at $built" 2
        [ ${#prefix} -le "$longest" ] || die \
            "--prefix $prefix: ${#prefix} characters, and the programs of this environment have room for $longest" \
            "name a shorter one" 2
    fi
    say "verifying the disc"
    found=$(cd "$disc" && sha256sum -c SHA256SUMS 2>&1) || {
        say "$found" | while IFS= read -r line; do
            case $line in *': OK' | *WARNING*) ;; *) say "  $line" >&2 ;; esac
        done
        die "the disc is damaged: the files named above are not what its SHA256SUMS says; nothing was changed" \
            "make the disc anew, or use another copy" 3
    }
    there=$(current)
    if [ "$there" ]; then
        other=$(told "$store/$there/about" name)
        [ "$other" = "$name" ] || die "$prefix holds another appliance, $other" \
            "install this one elsewhere with --prefix, or remove that one: sh $store/current/install.sh --uninstall"
    fi

    say "$name $version${summary:+: $summary}"
    state=''
    if [ "$there" ] && [ "$(told "$store/$there/about" id)" = "$id" ]; then
        if check "$store/$there"; then
            if finished; then
                [ ! -L "$store/lock" ] || hold
                say "It is installed at $prefix and sound; there is nothing to do."
                exit 0
            fi
            state=interrupted
            say "  an earlier run was cut short after the switch: its clean-up is done now"
        else
            say "  what is installed at $prefix differs (above): it is laid down anew"
        fi
    elif [ "$there" ]; then
        say "  upgrades     $prefix from version $(told "$store/$there/about" version), which is kept for --rollback"
    fi
    say "  environment  $prefix ($packages packages, $((kilobytes / 1024)) MiB)"
    say "  store        $store"
    if [ "$root" ] && [ -s "$data/root.paths" ]; then
        while IFS= read -r path; do say "  file         /$path"; done <"$data/root.paths"
    fi
    if [ "$services" ]; then
        while read -r service port _; do
            say "  service      $service${root:+, as the user $service of its own}; port: $port; $units/$service.service"
        done <"$data/services"
    fi

    refuse_conflicts "$data"
    above=$parent
    while [ ! -d "${above:-/}" ]; do above=${above%/*}; done
    # shellcheck disable=SC2046 # words, on purpose
    set -- $(df -P -k "${above:-/}" 2>/dev/null | tail -n 1)
    free=${4:-}
    case $free in '' | *[!0-9]*) free=$((2 * kilobytes)) ;; esac # a file system that does not tell
    [ "$free" -ge $((kilobytes + kilobytes / 8)) ] ||
        die "${above:-/} has $((free / 1024)) MiB free, and $((kilobytes / 1024 + kilobytes / 8192)) are needed" "make room"
    [ -w "${above:-/}" ] || die "you may not write to ${above:-/}" "run this as root, or name a folder of yours with --prefix"
    confirm

    missing='' folder=$parent
    while [ ! -d "${folder:-/}" ]; do
        missing="$folder
$missing"
        folder=${folder%/*}
    done
    mkdir -p "$store"
    [ -e "$store/folders" ] || printf '%s' "$missing" >"$store/folders"
    hold
    if [ "$state" = interrupted ]; then
        make_users "$store/$there"
        make_links "$store/$there"
        finish
        exit 0
    fi
    clear_away
    stage
    folder=$version-$id number=0
    while [ -e "$store/$folder" ]; do
        number=$((number + 1))
        folder=$version-$id.$number
    done
    sync
    mv "$store/new" "$store/$folder"
    go_to "$folder"
    say "$name $version is installed at $prefix."
    tell_use
}

rollback() {
    there=$(current)
    [ "$there" ] || die "nothing is installed at $prefix"
    back=$(cat "$store/$there/before" 2>/dev/null || true)
    { [ "$back" ] && [ -d "$store/$back" ]; } ||
        die "there is no version before $(told "$store/$there/about" version) at $prefix"
    say "$(told "$store/$there/about" name): from $(told "$store/$there/about" version) back to $(told "$store/$back/about" version)"
    check "$store/$back" || die "the version before is damaged (above), and was not taken into use" "install it from its disc"
    refuse_conflicts "$store/$back"
    confirm
    hold
    go_to "$back"
    say "$prefix is version $(told "$store/$back/about" version) again."
}

uninstall() {
    [ -d "$store" ] || {
        say "Nothing is installed at $prefix."
        exit 0
    }
    say "This removes $prefix and $store${keep:+; the services\' data stay}"
    [ ! -e "$store/users" ] || [ "$keep" ] || while read -r service; do
        say "  and the user $service with all of /var/lib/$service, /var/cache/$service, /var/log/$service"
    done <"$store/users"
    confirm
    hold
    versions >"$store/versions.tmp"
    while IFS= read -r one; do
        [ ! -e "$store/$one/units" ] || while read -r service _; do
            control stop "$service.service" 2>/dev/null || true
        done <"$store/$one/services"
    done <"$store/versions.tmp"
    rm -f "$store/current" # from here on nothing is installed; the rest is clearing away
    while IFS= read -r one; do
        remove_links "$store/$one"
    done <"$store/versions.tmp"
    control daemon-reload || true
    if [ -z "$keep" ] && [ -e "$store/users" ]; then
        while read -r service; do
            rm -rf "/var/lib/${service:?}" "/var/cache/${service:?}" "/var/log/${service:?}"
        done <"$store/users"
        remove_users
    fi
    # The lists go last: a run that is killed here can be finished by another.
    folders=$(tac "$store/folders")
    remove_folders
    while IFS= read -r one; do rm -rf "${store:?}/$one"; done <"$store/versions.tmp"
    rm -rf "$store"
    remove_folders # those above the store
    say "Nothing of it is left${keep:+ but the services\' data}."
}

case $action in
install) install ;;
rollback) rollback ;;
uninstall) uninstall ;;
check)
    [ "$(current)" ] || die "nothing is installed at $prefix" "" 5
    say "$(told "$store/current/about" name) $(told "$store/current/about" version) at $prefix"
    check "$store/$(current)" || die "it is not as it was installed" "sh install.sh    from its disc lays it down anew" 5
    astray=$(places "$store/$(current)" | while IFS=$tab read -r target place; do
        is_link "$target" "$place" || say "  $place: no longer a link to $target"
    done)
    [ -z "$astray" ] || {
        say "$astray"
        die "it is not as it was installed" "sh install.sh    from its disc mends it" 5
    }
    say "as it was installed: $(wc -l <"$store/current/sums") files"
    ;;
esac
