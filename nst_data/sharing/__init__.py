"""Push versions to the Hub and pull them back.

Input: a version of the store, or a reference `owner/name@tag`. Output: one commit and one tag, which is set last and never moved; or a
sealed version in the store, with every file verified. Published manifests contain no local paths.
"""
