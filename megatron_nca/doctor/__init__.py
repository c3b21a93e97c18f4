"""What this machine can do and what is wrong with it: `probe.py` looks, `software.py` and `system.py` judge.

A check is a pure function of a `machine.Machine`, so that tests can judge machines that nobody has.
"""
