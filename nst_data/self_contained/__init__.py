"""Editions that include their images: written in shuffled shards, and read from local disk or from the Hub.

Input: selected rows and the pool. Output: shards with images; images are read one by one or shard by shard, and verified by checksum.
"""
