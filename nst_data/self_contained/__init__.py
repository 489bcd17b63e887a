"""Editions that hold their images: written in shuffled shards, read from this disk or from the Hub.

In: selected rows and the pool. Out: shards with images, and each image alone or shard by shard, checked against its checksum.
"""
