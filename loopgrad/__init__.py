"""Memory-efficient alternatives to backprop-through-time for networks that apply the same weights many times."""

__version__ = "0.1.0"
