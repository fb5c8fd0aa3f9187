"""Inventory and policies, in PostgreSQL."""
