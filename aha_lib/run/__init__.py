"""A run: trained, kept, resumed, stopped, from a notebook or a command line."""
