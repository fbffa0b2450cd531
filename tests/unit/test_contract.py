"""What a machine promises to its packages: from the definition, from the base, into the lock and back."""

import itertools

import pytest

from conda_appliance import contract
from conda_appliance.contract import Contract
from conda_appliance.errors import UsageError

TRIXIE = {"glibc": "2.41", "kernel": "6.12.57"}


def settle(base: dict[str, str], **stated: str) -> Contract:
    return contract.settle(stated=stated, base=base, named="trixie")


def test_a_debian_base_tells_what_is_not_stated() -> None:
    assert settle({**TRIXIE}) == Contract(glibc="2.41", kernel="6.12.57", arch_level="x86-64-v1")


def test_of_a_cloud_image_the_least_is_assumed() -> None:
    assert settle({}) == Contract(glibc="2.36", kernel="5.10", arch_level="x86-64-v1", cuda=None)
    assert settle({}, glibc="2.28", kernel="4.18").virtual_packages[1:3] == (
        ("__glibc", "2.28", "0"),
        ("__linux", "4.18", "0"),
    )


@pytest.mark.parametrize(("field", "stated"), [("glibc", "2.42"), ("kernel", "6.13"), ("kernel", "6.12.58")])
def test_more_than_the_base_has_is_refused(field: str, stated: str) -> None:
    with pytest.raises(UsageError) as caught:
        settle(TRIXIE, **{field: stated})
    assert caught.value.message == f"target.{field} is {stated}, and the base trixie has {TRIXIE[field]}"
    assert f"state {TRIXIE[field]} or less" in caught.value.hint


def test_less_than_the_base_has_may_be_promised() -> None:
    assert settle(TRIXIE, glibc="2.28", kernel="6.12") == Contract(glibc="2.28", kernel="6.12")


def test_the_solver_is_told_by_virtual_packages_and_the_lock_has_the_same() -> None:
    made = Contract(glibc="2.41", kernel="6.12.57", arch_level="x86-64-v3", cuda="12.4")
    assert made.virtual_packages == (
        ("__archspec", "1", "x86_64_v3"),
        ("__cuda", "12.4", "0"),
        ("__glibc", "2.41", "0"),
        ("__linux", "6.12.57", "0"),
        ("__unix", "0", "0"),
    )
    assert contract.of(made.locked) == made


@pytest.mark.parametrize("level", contract.ARCHSPEC)
def test_every_level_comes_back_from_a_lock(level: str) -> None:
    assert contract.of(Contract(arch_level=level).locked) == Contract(arch_level=level)


def test_a_lock_that_promised_nothing_is_read_as_the_least() -> None:
    assert contract.of(()) == Contract()


@pytest.mark.parametrize(
    ("packages", "kernel"),
    [
        (["libc6", "linux-image-cloud-amd64", "linux-image-6.12.57+deb13-cloud-amd64"], "6.12.57"),
        (["linux-image-6.1.0-41-cloud-amd64"], "6.1.0"),
        (["linux-image-6.12.57+deb13-amd64", "linux-image-6.1.0-41-amd64"], "6.1.0"),
        (["libc6"], None),
    ],
)
def test_the_kernel_is_what_uname_says(packages: list[str], kernel: str | None) -> None:
    assert contract.kernel_of(packages) == kernel


@pytest.mark.parametrize(
    ("less", "more"),
    [("2.9", "2.36"), ("6.1", "6.12.57"), ("5.10.0-20-amd64", "6.1.0-41-amd64"), ("6.12", "6.12.1")],
)
def test_versions_are_compared_by_their_numbers(less: str, more: str) -> None:
    assert contract.key(less) < contract.key(more)


def test_a_version_is_no_less_for_its_zeros_and_its_debian_part() -> None:
    assert contract.key("6.1.0-41-cloud-amd64") == contract.key("6.1") == contract.key("6.1.0")


def test_a_level_has_the_flags_of_those_below() -> None:
    levels = [Contract(arch_level=level).cpu_flags for level in contract.LEVELS["linux-64"]]
    assert levels == sorted(levels, key=len)
    assert all(lower < higher for lower, higher in itertools.pairwise(levels))
    assert {"sse2", "pni", "avx2", "abm"} <= levels[2] and "avx512f" not in levels[2]


def test_what_is_needed_beyond_the_promise_is_named_with_its_package() -> None:
    error = contract.more_than_promised(
        [["torch", "__cuda >=12"], ["new", "__glibc >=2.99"], ["fast", "__archspec 1 x86_64_v3"]],
        Contract(glibc="2.41").virtual_packages,
    )
    assert error.message == (
        "torch needs __cuda >=12; new needs __glibc >=2.99; fast needs __archspec 1 x86_64_v3, "
        "and the machine has __archspec 1 x86_64, no __cuda, __glibc 2.41"
    )
