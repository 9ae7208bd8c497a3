"""The warm process behind the exec doors: the wire to it, its server, and the chores it does while nobody asks."""
