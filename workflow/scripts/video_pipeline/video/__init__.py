"""Reading videos."""

READER_VERSION = 3
"""A part of the fingerprint. Raise it if the same file gives other frames than before."""
