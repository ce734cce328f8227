"""What the library needs of Python, the machine and JAX: checks, files, processes, signals."""
