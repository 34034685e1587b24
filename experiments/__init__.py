"""Claims of the report, ablations and the scaling law, on runs of the recipe."""
