"""Alerts: rules, silences, what they find as data arrives, and who is told."""
