"""Streams that go on at another target: what the client has already, and how the second part joins it."""
