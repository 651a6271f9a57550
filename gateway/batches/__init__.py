"""Files that tenants store and batches of calls: what is in them, what they say is wrong, where their content lies."""
