"""Few-shot learning by hyper-representation: network, method, training loop, run directories and figures."""
