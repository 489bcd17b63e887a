"""Versions on disk: staged while they are made, sealed once, found again.

Input: a request (the settings and inputs of a version) and the files that a command writes for it. Output: a folder with its manifest
`nst.json`, which never changes again and can be found by the digest of its request. Nothing here knows what the files mean.
"""
