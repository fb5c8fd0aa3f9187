"""The command line: every command but `up` and `serve` is a client of the gateway."""
