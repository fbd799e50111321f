"""Whether models that share a device get what is theirs: floods, weights and priorities. `make bench-fairness`."""
