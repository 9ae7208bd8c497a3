"""Messages of the deviceplugin contract, one module a version."""
