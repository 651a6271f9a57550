"""Targets and what is known of each: load, health, what its engine says."""

from gateway.targets.target import Target

__all__ = ["Target"]
