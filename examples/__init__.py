"""Recipes and small programs to copy; installed beside the command line so that `nst demo` finds its own."""
