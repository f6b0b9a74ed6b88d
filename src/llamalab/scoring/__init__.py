"""Teacher forcing: the log probability that a policy gives to a response, exactly."""
