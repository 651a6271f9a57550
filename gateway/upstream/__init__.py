"""The connections to targets: HTTP/1.1 on sockets of our own, kept in a pool."""
