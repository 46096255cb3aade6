"""What `assistq run` and `assistq up` start on this machine: queue, local model, workers."""
