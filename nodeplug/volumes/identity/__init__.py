"""X.509 identities of pods after SPIFFE: names, the node's authority, issuing, and the volume that shows them.

`cryptography` is imported only by `certificates`, and only when something is to be signed or read.
"""
