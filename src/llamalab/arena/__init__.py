"""The arena: is the new policy better than the old one, and can these data say so."""
