"""The hypergradient passes: reverse and forward mode, over `Run`, the op of T steps of any dynamics."""
