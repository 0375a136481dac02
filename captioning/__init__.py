"""One interface, several captioners. No Ray."""
