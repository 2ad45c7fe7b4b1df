"""A package, so that no other package of this name, as some install one, is taken for it."""
