# Lays the environments down from the payload. Reads VOLUME, the disc's label, and ENVIRONMENTS, a line `NAME PREFIX`
# for each; READ_ONLY is not empty where the environments have a partition of their own. A builder that works on files shows the payload's files in /run/payload instead, and has put the
# environments in their places: then there is no environment.tar.
set -eu
umask 022
folder=/run/payload
if [ ! -d $folder ]; then
    folder=$(mktemp -d /run/payload.XXXXXX)
    finish() {
        ! mountpoint -q "$folder" || umount "$folder"
        rmdir "$folder"
    }
    trap finish EXIT
    udevadm settle || true
    if ! mount -t iso9660 -o ro "LABEL=$VOLUME" "$folder"; then
        echo "no disc labelled $VOLUME: is the payload attached to the machine?" >&2
        exit 1
    fi
fi

# The lock names every package by its hash: the same lock is the same environments.
stamp=/etc/conda-appliance/appliance.lock
if [ -e "$folder/environment.tar" ] && ! cmp -s "$folder/appliance.lock" "$stamp"; then
    if ! (cd "$folder" && sha256sum --check --quiet SHA256SUMS) >&2; then
        echo "the payload disc is damaged: the files named above are not what its SHA256SUMS says" >&2
        exit 1
    fi
    # Paths in it are relative to /. Folders that are there keep their modes, links to folders stay links.
    tar --extract --file="$folder/environment.tar" --directory=/ --numeric-owner \
        --no-overwrite-dir --keep-directory-symlink
    echo "changed: the environments are unpacked"
fi

# What activation sets (etc/conda/activate.d), for units, which run no shell: one file for each environment.
mkdir -p /etc/conda-appliance/environments
printf '%s' "$ENVIRONMENTS" | while read -r name prefix; do
    [ -d "$prefix/conda-meta" ] || {
        echo "the payload holds no environment for $prefix" >&2
        exit 1
    }
    file=/etc/conda-appliance/environments/$name.env
    : >"$file"
    [ -d "$prefix/etc/conda/activate.d" ] || continue
    # shellcheck disable=SC2016 # the inner shell is the one to expand it
    env -i PATH="$prefix/bin:/usr/bin:/bin" CONDA_PREFIX="$prefix" HOME=/ bash -c '
        before=$(export -p)
        for script in "$CONDA_PREFIX"/etc/conda/activate.d/*.sh; do . "$script" >&2; done
        comm -13 <(sort <<<"$before") <(export -p | sort)' |
        # `declare -x NAME="VALUE"`: a line of an EnvironmentFile once its first words are gone.
        sed -n 's/^declare -x \([A-Za-z_][A-Za-z0-9_]*=".*"\)$/\1/p' >"$file"
done

# Where new environments and packages go when these cannot be written to (.condarc says so).
[ -z "$READ_ONLY" ] || install -d -m 0755 /var/lib/conda /var/lib/conda/envs /var/lib/conda/pkgs

# What the machine is made of: a list of packages, their licences and digests.
[ ! -e "$folder/sbom.cdx.json" ] || install -m 0644 "$folder/sbom.cdx.json" /etc/conda-appliance/sbom.cdx.json

# What appliance-verify compares the machine with.
[ ! -e "$folder/inventory" ] || install -m 0644 "$folder/inventory" /etc/conda-appliance/inventory

# Last: a run that was cut short begins again.
cmp -s "$folder/appliance.lock" "$stamp" || install -m 0644 "$folder/appliance.lock" "$stamp"
