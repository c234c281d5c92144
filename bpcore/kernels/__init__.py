"""Twins: faster versions of primitives for one library's arrays, in sets: fast/ and numpy/ for NumPy's, cuda/ for CuPy's.

A set has a file for each family of functional/, by the same name, and its machinery apart, in engine/. Importing a set registers
its twins, see bpcore.primitive. Deleting this folder leaves a library that works.
"""
