"""The command line; installs as the import package `nst_cli`."""
