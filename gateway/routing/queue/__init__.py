"""Calls that wait for a target: the queue, whose turn it is, and routes that are cold."""
