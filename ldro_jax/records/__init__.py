"""What runs leave: their record, the files that hold it, and where it was made."""
