"""The local page of `nst look`: its server, who may see it, and what it shows."""
