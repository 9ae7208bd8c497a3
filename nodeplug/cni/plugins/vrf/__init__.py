"""vrf: a pod's interface in a VRF of the pod's namespace, so that networks with equal addresses do not meet."""
