"""The packages: those below `nst_data` and `nst_train` are found; the folder `cli/` installs as `nst_cli`, `examples/` inside it."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["nst_data", "nst_data.*", "nst_train", "nst_train.*"]), "nst_cli", "nst_cli.examples", "nst_cli.look"]
)
