"""`python -m nst_cli` is `nst`."""

from nst_cli.main import run

run()
