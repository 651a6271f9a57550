"""Values that every floor above shares: the error tree, the clock, the types of a call's way."""
