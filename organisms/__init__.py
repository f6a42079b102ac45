"""WHAT is grown: organism specs, the training rows each style makes of them, and specimens."""
