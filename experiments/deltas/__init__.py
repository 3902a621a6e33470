"""What an analysis measures on trained weights: verdicts, spectra, gradients, and pictures of single recursions."""
