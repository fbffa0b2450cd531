"""A disc says its names three times; the plain and the Joliet ones are made from the real ones."""

import pytest

from conda_appliance import disc


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
    assert disc.plain_name(name, set()) == plain


def test_a_plain_folder_name_has_no_dot() -> None:
    assert disc.plain_name("python3.13", set(), folder=True) == "PYTHON3_13"


def test_plain_names_that_would_meet_are_told_apart() -> None:
    taken: set[str] = set()
    for name in ("Case.txt", "case.txt", "CASE.TXT", "a" * 30 + "1", "a" * 30 + "2"):
        taken.add(disc.plain_name(name, taken))
    assert sorted(taken) == ["A" * 20, "A" * 18 + "_1", "CASE.TXT", "CASE_1.TXT", "CASE_2.TXT"]


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
    assert disc.joliet_name(name, set()) == joliet


def test_joliet_names_differ_in_more_than_case() -> None:
    taken: set[str] = set()
    made = []
    for name in ("Case.txt", "case.txt", "x" * 70, "x" * 71):
        made.append(disc.joliet_name(name, taken))
        taken.add(made[-1].casefold())
    assert made == ["Case.txt", "case~1.txt", "x" * 64, "x" * 62 + "~1"]
