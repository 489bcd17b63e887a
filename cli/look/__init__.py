"""The local page of `nst look`: its server, its access control, and its contents."""
