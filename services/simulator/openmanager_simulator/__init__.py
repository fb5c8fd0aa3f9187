"""A deterministic fleet: its servers, its metrics, its faults, and the ticks that write them."""
