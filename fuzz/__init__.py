"""What a hostile, broken or greedy client does, from a seed, and proof that the suite stands it.

`make fuzz` sends hostile input to every method in one process; `make fuzz-wire` runs what needs real sockets: attacks
beside a good client, damaged messages, and cancelled calls.
"""
