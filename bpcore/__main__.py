"""`python -m bpcore` prints what this installation runs on."""

from bpcore.info import backend_info

print(backend_info())
