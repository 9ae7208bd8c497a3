"""Bounded log directories: what a pod writes is rotated, the oldest is dropped, collectors of the node may read it.

`rules` decides what is to be done (pure), `rotation` does it, `index` is the account of it on disk, `keeper` watches
one volume and `chore` all of the node; `volume` is the back-end.
"""
