"""Routing policies: one file each, found by the entry points in `trunkline.policies`."""
