"""Where devices come from: one module for each kind of rule, each with one class that is a `contract.Source`."""
