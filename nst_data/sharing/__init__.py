"""A version to the Hub and back.

In: a version of the store, or a reference `owner/name@tag`. Out: one commit and one tag, set last and never moved; or a sealed version
in the store, each file checked. What others see of a manifest names no path of this machine.
"""
