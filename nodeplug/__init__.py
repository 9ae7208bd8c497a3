"""nodeplug: everything below the kubelet, one house behind every contract's door.

Nothing is imported here: this module is on the path of every executed plugin.
"""

__version__ = "0.1.0"
