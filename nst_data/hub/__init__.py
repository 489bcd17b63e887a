"""The Hugging Face Hub: one client for repositories, tags and files.

Input: `owner/name` and a revision. Output: the content of a repository, and calls that change it. Every error becomes a one-line message.
"""
