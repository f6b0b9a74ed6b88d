"""C++ that is compiled on the user's machine, for its processor, when it is first needed."""
