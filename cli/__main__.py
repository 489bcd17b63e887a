"""Makes `python -m nst_cli` the same as `nst`."""

from nst_cli.main import run

run()
