"""Work on a Ray cluster: the nodes that can do it, the workers on them, and what each of them opens.

In: a job, which is names and addresses alone, and the shards that are missing. Out: how many rows of which shard are done. A lost worker's
shard goes to another; its bytes do not depend on who writes it. Nothing here knows what a shard holds: labels or features.
"""
