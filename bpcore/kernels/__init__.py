"""Twins: faster versions of primitives for one library's arrays, in <library>_twins.py, under the primitives' names.

A twin takes what the definition takes and returns the same to rounding; where a case is not worth a twin it calls the
definition. Deleting this folder leaves a library that works.
"""
