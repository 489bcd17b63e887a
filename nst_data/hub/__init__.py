"""The Hugging Face Hub: one client for repositories, tags and files.

In: `owner/name` and a revision. Out: what is there, and calls that change it. What goes wrong on the way becomes one line.
"""
