"""Short guides that run: `python -m hypergrad.examples` lists them, and `python -m hypergrad.examples five_steps` runs one.

A guide is one file of this folder with a function `main`. It prints what it finds, and asserts what it claims.
"""
