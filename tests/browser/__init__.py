"""The product as people use it: the whole stack, and Chromium."""
