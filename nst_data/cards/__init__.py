"""What readers of a version see: its card (README.md with the Hub's metadata) and pictures.

Input: a manifest, metrics and the version's location on the Hub. Output: markdown in which untrusted text is shown literally, the command
that reproduces the version, and the known limits of its labels.
"""
