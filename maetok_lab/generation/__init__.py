"""Models to images, the same whatever the batch size and the number of processes."""
