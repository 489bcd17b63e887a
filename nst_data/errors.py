"""What goes wrong through input: one line that says what was expected, what came and what to do."""


class NstError(ValueError):
    """The work cannot be done on this input (exit status 1)."""


class UsageError(NstError):
    """The command, recipe or reference itself is wrong (exit status 2)."""
