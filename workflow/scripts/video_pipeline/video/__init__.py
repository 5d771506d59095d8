"""Reading videos."""

READER_VERSION = 2
"""A part of the fingerprint. Raise it if the same file gives other frames than before."""
