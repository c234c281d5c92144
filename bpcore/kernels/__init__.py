"""Twins: faster versions of primitives for the arrays of one library. See bpcore.primitive, which calls them.

They come in sets: numpy/ and fast/ for NumPy's arrays, cuda/ for CuPy's. A set has one file for each family of functional/, with
the same name; what its families share is in a folder engine/. Importing a set registers its twins. The library also works
without this folder.

Twins write gradients straight into windows: views of a part of the gradient vector.
"""
