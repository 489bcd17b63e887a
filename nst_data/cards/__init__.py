"""What a reader of a version sees: its card (README.md with the Hub's metadata) and pictures.

In: a manifest, metrics and where the version stands on the Hub. Out: markdown in which text of strangers stands as text, the command
that makes the version again, and what its labels cannot be trusted for.
"""
