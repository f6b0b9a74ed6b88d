"""Model files: finding, downloading, reading and writing them."""
