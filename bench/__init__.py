"""`make bench`: ours beside a peer, in the same run, on the same items, with results that must be equal.

One file a subject; each row is a function from a Setup to Rows. docs/bench.md says what the rows are and what was found.
"""
