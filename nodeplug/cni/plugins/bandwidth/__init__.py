"""bandwidth: how fast a pod may receive and send. Chained after a plugin that joins it to the host by a veth."""
