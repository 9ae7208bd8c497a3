"""firewall: a pod's traffic passes where the host forwards, and only what its ingress policy lets in reaches it."""
