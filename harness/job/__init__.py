"""Job files: their keys, the custom functions that they name, and the space of a search."""
