"""The services: started at boot, as nobody special, and answering."""

import http.client
import time

from conda_appliance.guest import run_python

#: Runs on the machine: prints the status of a GET there.
GET = """
import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=60)
connection.request("GET", sys.argv[2])
print(connection.getresponse().status)
"""


def settings(host, service, *names):
    """Properties of its unit, as systemd tells them."""
    wanted = ",".join(names)
    lines = host.check_output(f"systemctl show -p {wanted} {service.name}.service").splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_it_is_active_and_enabled(host, service):
    found = settings(host, service, "ActiveState", "SubState", "UnitFileState", "NRestarts")
    assert found == {
        "ActiveState": "active",
        "SubState": "running",
        "UnitFileState": "enabled",
        "NRestarts": "0",
    }


def test_it_runs_without_privileges(host, service):
    group = settings(host, service, "ControlGroup")["ControlGroup"]
    users = host.check_output(
        f"for pid in $(cat /sys/fs/cgroup{group}/cgroup.procs); do stat -c %U /proc/$pid; done | sort -u"
    ).splitlines()
    assert users
    assert "root" not in users


def test_it_answers(host, service, appliance):
    if service.port is None:
        return
    # A service may need a moment after it was started, more under emulation.
    deadline = time.monotonic() + 30 * appliance.patience
    listening = f"ss -H -tln 'sport = :{service.port}'"
    while not (sockets := host.check_output(listening)) and time.monotonic() < deadline:
        time.sleep(1)
    assert sockets, f"nothing listens on port {service.port}"
    addresses = [line.split()[3] for line in sockets.splitlines()]
    if all(address.startswith(("127.", "[::1]")) for address in addresses):
        status = int(run_python(host, GET, str(service.port), service.path).stdout or 599)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", service.forwarded, timeout=60)
        connection.request("GET", service.path)
        status = connection.getresponse().status
    assert status < 400
