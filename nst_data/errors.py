"""What goes wrong through input: one line that says what was expected, what came and what to do."""


class NstError(ValueError):
    """The work cannot be done on this input (exit status 1)."""


class UsageError(NstError):
    """The command, recipe or reference itself is wrong (exit status 2)."""


def first_line(error: BaseException) -> str:
    """The first line of what another library's error says; its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this machine or its GPU has no memory left; libraries say so in classes of their own."""
    said = ("out of memory", "can't allocate memory", "Cannot allocate memory", "Unable to allocate")
    return isinstance(error, MemoryError) or any(words in str(error) for words in said)
