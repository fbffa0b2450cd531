"""The machine is what its packages were promised: C library, kernel, processor, and CUDA where it was asked for."""

import pytest

from conda_appliance import contract
from conda_appliance.guest import run_python

#: Runs on the machine: the CUDA version of its driver, which libcuda tells without a GPU too.
CUDA = """
import ctypes
version = ctypes.c_int()
status = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
assert status == 0, f"libcuda answers {status}"
print(f"{version.value // 1000}.{version.value % 1000 // 10}")
"""


@pytest.fixture
def promised(appliance):
    return contract.of(appliance.virtual_packages)


def test_its_c_library_is_as_new_as_promised(host, promised):
    found = host.check_output("getconf GNU_LIBC_VERSION").removeprefix("glibc ")
    assert contract.key(found) >= contract.key(promised.glibc), f"glibc {found}, promised {promised.glibc}"


def test_its_kernel_is_as_new_as_promised(host, promised):
    found = host.check_output("uname -r")
    assert contract.key(found) >= contract.key(promised.kernel), f"Linux {found}, promised {promised.kernel}"


def test_its_processor_has_the_promised_level(host, promised):
    flags = set(host.check_output("sed -n -E '/^(flags|Features)/{s/.*: //p;q}' /proc/cpuinfo").split())
    lacking = sorted(promised.cpu_flags - flags)
    assert lacking == [], f"this processor is no {promised.arch_level} (QEMU emulates x86-64-v3 at most)"


def test_its_driver_has_the_promised_cuda(host, promised):
    if promised.cuda is None:
        pytest.skip("no CUDA was promised")
    result = run_python(host, CUDA)
    assert result.rc == 0, f"CUDA {promised.cuda} was promised, and there is no driver: {result.stderr}"
    found = result.stdout.strip()
    assert contract.key(found) >= contract.key(promised.cuda), f"CUDA {found}, promised {promised.cuda}"
