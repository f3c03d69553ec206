"""The contenders of benchmarks/transport.py."""
