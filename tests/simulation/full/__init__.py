"""The full tier: the whole daemon, its store and its files, under virtual time and every kind of bad luck.

Run it by hand with `python -m tests.simulation.full --seed N`; the folder's README is the docstring of simulation.py.
"""
