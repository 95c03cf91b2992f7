"""Bit parity with the reference: the constructor's draws, repeated in order from torch's own generator."""
