"""Work on a Ray cluster: the usable nodes, the workers on them, and what each worker opens.

Input: a job, which consists of names and addresses only, and the missing shards. Output: how many rows of each shard are done. The shard of
a lost worker goes to another; its bytes do not depend on who writes it. Nothing here knows what shards hold: labels or features.
"""
