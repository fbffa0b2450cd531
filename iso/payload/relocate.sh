# shellcheck shell=sh disable=SC2154
# Gives linked environments another prefix. Read by install.sh and conda-unpack, which know $built, the prefix that they
# were linked for, $prefix, where they will live, and $environments, a word NAME:FOLDER-INSIDE for each.
#
# `relocations` names each place of the old prefix, found when the disc was made from the packages' own records:
#   text OFFSET,… FILE                     the prefix is replaced, and the file grows or shrinks
#   binary OFFSET:ROOM:LENGTH,… FILE       a C string of ROOM bytes: the prefix, LENGTH bytes, the prefix … then zeros
#   record OFFSET RECORD FILE              conda's record of the file has its SHA-256 there

relocate() { # relocate TREE DATA: the tree was linked for $built, and will live at $prefix; DATA has `relocations`
    moving=$2
    while read -r kind where file; do
        case $kind in
        text) relocate_text "$1/$file" "$where" ;;
        binary) relocate_binary "$1/$file" "$where" ;;
        record)
            digest=$(sha256sum "$1/${file#* }")
            printf '%s' "${digest%% *}" |
                dd of="$1/${file%% *}" bs=1 seek="$where" conv=notrunc 2>/dev/null
            ;;
        esac
    done <"$2/relocations"
    for environment in $environments; do
        folder=$1${environment#*:}
        [ ! -x "$folder/bin/python" ] ||
            "$folder/bin/python" -I -S -B "$2/bytecode.py" "$folder" "$prefix${environment#*:}"
    done
}

relocate_text() ( # relocate_text FILE OFFSETS
    at=0
    exec 3<"$1"
    {
        IFS=,
        for offset in $2; do
            [ "$offset" = "$at" ] || dd bs=$((offset - at)) count=1 <&3 2>/dev/null
            dd bs=${#built} count=1 of=/dev/null <&3 2>/dev/null
            printf '%s' "$prefix"
            at=$((offset + ${#built}))
        done
        cat <&3
    } >"$moving/text.tmp"
    cat "$moving/text.tmp" >"$1"
    rm -f "$moving/text.tmp"
)

relocate_binary() ( # relocate_binary FILE OFFSET:ROOM:LENGTHS
    offset=${2%%:*} lengths=${2##*:} room=${2#*:}
    room=${room%%:*} at=$offset
    {
        IFS=,
        for length in $lengths; do
            at=$((at + ${#built}))
            printf '%s' "$prefix"
            [ "$length" = 0 ] || dd if="$1" bs=1 skip="$at" count="$length" 2>/dev/null
            at=$((at + length)) room=$((room - ${#prefix} - length))
        done
        while [ "$room" -gt 0 ]; do
            printf '\000'
            room=$((room - 1))
        done
    } >"$moving/field.tmp"
    dd if="$moving/field.tmp" of="$1" bs=1 seek="$offset" conv=notrunc 2>/dev/null
    rm -f "$moving/field.tmp"
)
