"""Calls to services of which there are several shards: whom a call is for, and how one answer is made of theirs.

With one shard nothing of this is in the way: bytes are passed on as they come.
"""
