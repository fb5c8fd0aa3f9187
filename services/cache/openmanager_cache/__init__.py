"""Hot state: every server as it is now, kept from the log and backed by Redis."""
