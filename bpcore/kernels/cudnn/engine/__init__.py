"""The machinery of cuDNN's twins: plans, and the choice between them."""
