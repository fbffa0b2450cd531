# Reads TIMER, which is not empty where the definition wants a timer. The program then records how the system stands.
set -eu
if [ -n "$TIMER" ] && ! systemctl -q is-enabled appliance-verify.timer; then
    systemctl -q --no-reload enable appliance-verify.timer
    echo "changed: appliance-verify.timer is enabled"
fi
appliance-verify --record
