"""dhcp: addresses leased from a DHCP server of the pod's own network, renewed by a chore of nodeplugd."""
