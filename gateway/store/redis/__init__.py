"""The store that many gateways share."""
