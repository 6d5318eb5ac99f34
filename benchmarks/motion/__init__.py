"""The miniature study: what each part of the method buys, on the project's own modules. See `__main__`."""
