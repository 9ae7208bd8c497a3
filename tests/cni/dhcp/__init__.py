"""Tests of the address manager dhcp, its leases and their renewal."""
