"""The command line, installed as the import package `nst_cli`."""
