"""The hypergradient passes: reverse, forward, and `unroll`, the op under both."""
