"""A stand-in for Nomad that any machine has: its HTTP API as far as nomadfn uses it, with real processes behind.

It keeps what was learnt from the real one: the highest name index of a group ends first, no two scale calls at once
make a difference, a GPU that no node has blocks the evaluation, restarts keep the allocation and rescheduling makes
a new one with the same name. `tests/nomad` holds it to the same contract as a real Nomad.
"""
