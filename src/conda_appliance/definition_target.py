"""What a definition says of the machine that its packages will find: the contract (`contract`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from conda_appliance.yamlfile import Model


class Target(Model):
    """What packages may count on. Solving, locked inputs and wheels are held to it, and so is the booted machine."""

    glibc: Annotated[
        str | None,
        Field(
            pattern=r"^[1-9]\d*\.\d+$",
            description="Its C library, such as 2.41. A Debian base tells it, and less may be said; for a cloud image "
            "2.36 without it.",
        ),
    ] = None
    kernel: Annotated[
        str | None,
        Field(
            pattern=r"^[1-9]\d*\.\d+(\.\d+)?$",
            description="Its oldest Linux, such as 6.1. A Debian base tells it, and less may be said; for a cloud "
            "image 5.10 without it.",
        ),
    ] = None
    arch_level: Annotated[
        Literal["x86-64-v1", "x86-64-v2", "x86-64-v3", "x86-64-v4"],
        Field(description="The least of a linux-64 machine's processors (psABI); v1 is every x86-64."),
    ] = "x86-64-v1"
    cuda: Annotated[
        str | None,
        Field(
            pattern=r"^[1-9]\d*\.\d+$",
            description="The CUDA that its driver has, such as 12.4. Without it, nothing is taken that needs CUDA.",
        ),
    ] = None
