"""One stage per file, in the order of the flow: a table of items or segments in, a table out."""
