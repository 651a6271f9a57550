"""The admin interface: keys, tenants, admin keys, the audit log and usage, on a listener of its own."""
