"""Self-consuming loops of a generative model and a classifier, and the subgroup bias they carry, in JAX."""
