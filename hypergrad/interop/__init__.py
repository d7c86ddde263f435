"""hypergrad beside other libraries: `interop.torch`, `interop.jax` and `interop.sklearn`.

None of these modules is imported with the package. Each needs its library: the extras `torch`, `jax` and `sklearn`.
"""
