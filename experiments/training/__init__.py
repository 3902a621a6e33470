"""Training: one run in its folder, many of them in processes, and probes on the weights they leave."""
