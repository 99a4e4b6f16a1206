"""The store of results: tables of measured rows, the plans they belong to, and the cells that failed."""
