"""What the machine answers on: SSH and its services' ports, and nothing that was not asked for."""

import re

LOOPBACK = ("127.", "[::1]")


def expected(protocol, address, port, program, appliance):
    """Whether something that listens has a reason to."""
    if protocol == "tcp":
        ours = {service.port for service in appliance.services}
        # systemd itself holds the port of a socket unit.
        ssh = port == 22 and program in ("sshd", "systemd")
        return ssh or port in ours or (port == 53 and address.startswith(LOOPBACK))
    if address.startswith(LOOPBACK):
        return port in (53, 323)  # systemd-resolved; chrony's own control port
    if port in (68, 546):  # a DHCP client
        return program in ("systemd-network", "dhclient", "dhcpcd", "NetworkManager")
    # While it asks a name server, systemd-resolved holds a random port for the answer.
    return port >= 32768 and program == "systemd-resolve"


def test_nothing_listens_that_was_not_asked_for(as_root, appliance):
    surprises = []
    for line in as_root["listening"]:
        protocol, _state, _received, _sent, local, *rest = line.split()
        address, _, port = local.rpartition(":")
        program = re.search(r'\(\("([^"]+)"', " ".join(rest))
        name = program[1] if program else "?"
        if not expected(protocol, address, int(port), name, appliance):
            surprises.append(f"{name} on {protocol} {local}")
    assert as_root["listening"]
    assert surprises == []
