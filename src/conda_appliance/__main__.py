"""``python -m conda_appliance``, and the console script."""

import gc

gc.disable()  # what is loaded stays: to look through it again and again takes an eighth of the time to load it

from conda_appliance.cli import entry_point  # noqa: E402

if __name__ == "__main__":
    entry_point()
