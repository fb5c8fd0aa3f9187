"""The audit log: entries in a Merkle tree, checkpoints, erasure, retention."""
