"""A disc says its names three times; the plain and the Joliet ones are made from the real ones."""

import pytest

from conda_appliance import disctree


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("environment.tar", "ENVIRONMENT.TAR"),
        ("user-data", "USER_DATA"),
        ("python3.13.tar.gz", "PYTHON3_13_TAR.GZ"),
        (".condarc", "_CONDARC"),
        ("Müller ☃.txt", "M_LLER__.TXT"),
        ("x" * 80 + ".extension-too-long", "X" * 20 + ".EXTENSIO"),
    ],
)
def test_a_plain_name_is_upper_case_and_short(name: str, plain: str) -> None:
    assert disctree.Names().plain(name) == plain


def test_a_plain_folder_name_has_no_dot() -> None:
    assert disctree.Names().plain("python3.13", folder=True) == "PYTHON3_13"


def test_plain_names_that_would_meet_are_told_apart() -> None:
    names = disctree.Names()
    made = [
        names.plain(name) for name in ("Case.txt", "case.txt", "CASE.TXT", "a" * 30 + "1", "a" * 30 + "2")
    ]
    assert made == ["CASE.TXT", "CASE_1.TXT", "CASE_2.TXT", "A" * 20, "A" * 18 + "_1"]


def test_a_name_that_looks_numbered_already_is_told_apart_too() -> None:
    names = disctree.Names()
    assert [names.plain(name) for name in ("a_1", "A", "a", "a_1")] == ["A_1", "A", "A_2", "A_1_1"]


@pytest.mark.parametrize(
    ("name", "joliet"),
    [
        ("Müller ☃.txt", "Müller ☃.txt"),
        ("a:b*c?d;e\\f", "a_b_c_d_e_f"),
        ("rocket🚀.txt", "rocket_.txt"),
        ("x" * 80 + ".tar.gz", "x" * 61 + ".gz"),
        ("ä" * 40, "ä" * 32),
    ],
)
def test_a_joliet_name_keeps_what_windows_can_read(name: str, joliet: str) -> None:
    assert disctree.Names().joliet(name) == joliet


def test_joliet_names_differ_in_more_than_case() -> None:
    names = disctree.Names()
    made = [names.joliet(name) for name in ("Case.txt", "case.txt", "x" * 70, "x" * 71)]
    assert made == ["Case.txt", "case~1.txt", "x" * 64, "x" * 62 + "~1"]


def test_many_names_that_begin_alike_are_told_apart_at_once() -> None:
    names = disctree.Names()
    made = {
        (names.plain(name), names.joliet(name))
        for name in (f"{'x' * 64}{number}" for number in range(20_000))
    }
    assert len(made) == 20_000
