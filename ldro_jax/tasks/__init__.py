"""Where task-major batches come from."""
