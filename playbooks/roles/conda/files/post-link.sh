#!/bin/sh
# Runs the post-link scripts of a conda environment on its machine, once:  post-link PREFIX ROOT_PREFIX PACKAGE…
# Its unit runs it on the first boot. A script that succeeded is noted in $STATE_DIRECTORY and never runs again; the
# first that fails ends it, and the next boot tries again. post_link.py records what each one did, and lists it for
# appliance-verify in $STATE_DIRECTORY/inventory.
set -eu
prefix=$1 base=$2
shift 2
recorder=${RECORDER:-/usr/lib/conda-appliance/post_link.py}
for name; do
    stamp=$STATE_DIRECTORY/$(printf '%s' "$prefix" | tr / -).$name
    script=$prefix/bin/.$name-post-link.sh
    # A package that was removed meanwhile asks for nothing.
    if [ -e "$stamp" ] || [ ! -e "$script" ]; then
        continue
    fi
    before=$stamp.before
    variables=$(/usr/bin/python3 -I -B "$recorder" begin "$prefix" "$base" "$name" "$before")
    status=0
    # shellcheck disable=SC2086 # a word for each; no value has a space
    (cd "$prefix" && exec /usr/bin/env -i $variables bash "$script") || status=$?
    if [ -f "$prefix/.messages.txt" ]; then
        cat "$prefix/.messages.txt"
        rm "$prefix/.messages.txt"
    fi
    if [ "$status" != 0 ]; then
        echo "the post-link script of $name failed (status $status): $script" >&2
        exit 1
    fi
    /usr/bin/python3 -I -B "$recorder" end "$prefix" "$name" "$before" "$STATE_DIRECTORY/inventory"
    : >"$stamp"
    rm "$before"
done
