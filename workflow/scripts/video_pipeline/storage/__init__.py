"""Storage: from the address of a file to its bytes, within the limits of this process."""
