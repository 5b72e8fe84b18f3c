"""mvjax trains vision-speech models of the MoshiVis kind in JAX/Flax; `mvjax --help` shows what it does."""

__version__ = "0.1.0"
