"""What tasks are trained on: data sets in memory, texts, streams, and which rows a step gets."""
