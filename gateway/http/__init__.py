"""HTTP in and out: what clients, operators and probes speak to."""
