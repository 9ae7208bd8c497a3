"""tuning: settings of the pod's interface and of its namespace. Chained after the plugin that made the interface."""
