"""tarfile with filters for what is unpacked (PEP 706), which Debian 12's Python, a 3.11.2, has not."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING or sys.version_info >= (3, 12):
    import tarfile
else:
    from backports import tarfile

__all__ = ["tarfile"]
