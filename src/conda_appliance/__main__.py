"""``python -m conda_appliance``."""

from conda_appliance.cli import entry_point

entry_point()
