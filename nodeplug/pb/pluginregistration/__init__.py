"""Messages of the pluginregistration contract, one module a version."""
