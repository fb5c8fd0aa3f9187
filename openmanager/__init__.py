"""OpenManager: a telemetry store for server fleets."""
