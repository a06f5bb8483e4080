"""Starting the training processes, watching them, and ending them cleanly."""
