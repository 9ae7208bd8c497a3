"""Address managers (IPAM), run in process for our plugins and as executables for others'."""
