"""Is each part of a running system as it should be, and if not, what is to be done: the checks of the doctor."""
