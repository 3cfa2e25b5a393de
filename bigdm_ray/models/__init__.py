"""Networks that two or more algorithms share."""
