# Reads TIMER, which is not empty where the definition wants a timer, and SERVICES, the services' names. The program then
# records how the system stands, and the settings that the roles made of who may log in and what runs.
set -eu
if [ -n "$TIMER" ] && ! systemctl -q is-enabled appliance-verify.timer; then
    systemctl -q --no-reload enable appliance-verify.timer
    echo "changed: appliance-verify.timer is enabled"
fi
set -- /usr/bin/appliance-verify /etc/profile.d/conda-appliance.sh /etc/sudoers.d/conda-appliance \
    /etc/ssh/sshd_config.d/10-conda-appliance.conf /etc/ssh/sshd_config.d/20-conda-appliance-path.conf \
    /etc/cloud/cloud.cfg.d/90-conda-appliance.cfg /etc/sysusers.d/conda-appliance.conf \
    /etc/systemd/system/ssh-host-keys.service
for name in $SERVICES; do set -- "$@" "/etc/systemd/system/$name.service"; done
[ -z "$TIMER" ] || set -- "$@" /etc/systemd/system/appliance-verify.service /etc/systemd/system/appliance-verify.timer
appliance-verify --record "$@"
