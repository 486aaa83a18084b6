"""The parts of ``benchmarks/engine.py``: one module per group of tables."""
