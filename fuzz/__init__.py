"""What a hostile, broken or greedy client does, and proof that the suite stands it.

`make fuzz-wire` runs what needs real sockets: attacks beside a good client, mutated messages, and cancelled calls.
"""
