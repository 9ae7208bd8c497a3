"""Tests of the KMS door. `node` has the control-plane node they run on."""
