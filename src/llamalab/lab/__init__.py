"""The laboratory's own instruments: what models are, need and do, measured."""
