"""The store of a gateway alone: counters in the process, keys and the ledger in files."""
