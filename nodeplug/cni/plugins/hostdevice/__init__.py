"""host-device: a device of the host becomes the pod's interface, and comes back when the pod ends."""
