"""Messages of the podresources contract, one module a version."""
