"""The hello appliance's own checks: they run over SSH on the booted machine."""

import json


def test_it_says_hello(host):
    answer = json.loads(
        host.check_output(
            "curl -sf http://127.0.0.1:8000/ || "
            "/opt/conda/bin/python -c 'import urllib.request as u; "
            'print(u.urlopen("http://127.0.0.1:8000/").read().decode())\''
        )
    )
    assert answer["message"] == "hello from an appliance"
    assert answer["checksum"] == 486
