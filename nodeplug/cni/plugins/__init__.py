"""Our CNI plugins, one file each, reached by name through `nodeplug.cni.dispatch`."""
