"""Processes that the gateway starts or is: servers of models, the admin listener, workers."""
