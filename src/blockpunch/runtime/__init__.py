"""The C runtime that is built into every compiled network, and the Python session that runs it."""
